"""What hand-written hosts do beside running: copies, threads, other forms of call, depth, length."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.util.bits import same_bits
from fxgraft_passes import Phase
from tests.hosts.hosts import Frozen, SkipBlock, StraightThrough, Tied


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.fc = SkipBlock(), nn.Linear(8, 8)

    def forward(self, x, mask=None):
        y = self.fc(self.block(x))
        return y if mask is None else y * mask


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Masked(), Masked()

    def forward(self, x, mask=None):
        return self.a(x, mask) + self.b(x, mask=mask)


def _grown(model, x, *slots):
    host = fxgraft.trace(model, (x,))
    manager = fxgraft.SeedManager(host)
    for slot in slots:
        manager.germinate(slot, "low_rank")
    return host, manager


def test_a_call_of_another_form_runs_the_model_is_counted_and_said_once(caplog):
    model, x = Pair(), torch.randn(4, 8)
    host, manager = _grown(model, x, "a.fc", "b.fc")
    assert same_bits(host(x), model(x))
    assert not caplog.records
    for _ in range(3):
        assert same_bits(host(x, x), model(x, x))
    said = [record.getMessage().split(" was called")[0] for record in caplog.records]
    assert sorted(said) == ["'a' (Masked)", "'b' (Masked)"]
    counts = {name: region.fallbacks for name, region in host.regions.items()}
    assert counts == {"": 0, "a": 3, "a.block": 0, "b": 3, "b.block": 0}
    again = copy.deepcopy(host)
    again(x, x)
    assert (again.regions["a"].fallbacks, host.regions["a"].fallbacks) == (4, 3)
    manager.cull_all()  # and is not forgotten with the seeds
    assert host.regions["a"].fallbacks == 3
    manager.germinate("a.fc", "low_rank")
    host(x, x)
    assert (host.regions["a"].fallbacks, host.regions["b"].fallbacks) == (4, 3)
    assert pickle.loads(pickle.dumps(host)).regions["a"].fallbacks == 4
    assert list(host.state_dict())[: len(model.state_dict())] == list(model.state_dict())


@pytest.mark.parametrize("granularity", ["host", "region"])
def test_counting_neither_breaks_nor_recompiles_a_compiled_graph(granularity, caplog, fresh_compiler):
    class Local(Masked):
        pass

    model, x = Pair(), torch.randn(4, 8)
    model.a, model.b = Local(), Local()
    host, _ = _grown(model, x, "a.fc", "b.fc")
    host.compile(backend="aot_eager", fullgraph=True, granularity=granularity)
    for call in [(x,), (x, x), (x,), (x, x)]:
        host(*call).sum().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(3):
            assert same_bits(host(x, x), model(x, x))
            assert same_bits(host(x), model(x))
            host(x, x).sum().backward()
    assert host.regions["a"].fallbacks == host.regions["b"].fallbacks == 8
    assert caplog.text.count("a Local was called with other kinds of arguments") == 1


def test_a_part_under_no_grad_leaves_the_callers_setting_alone():
    model, x = Frozen(), torch.randn(4, 8)
    host = fxgraft.trace(model, (x,))
    assert {"head", "head.fc1"} <= host.slots.keys()
    assert not [name for name in host.slots if name.startswith("backbone")]
    region = host.regions[""]
    region.install(region.forward_for((), Phase.ISOLATED))
    with torch.no_grad():
        assert not host(x).requires_grad
        assert not torch.is_grad_enabled()
    with pytest.raises(RuntimeError):
        host(torch.randn(4, 9))
    assert torch.is_grad_enabled()


def test_custom_autograd_functions_compile():
    torch.compiler.reset()
    model, x = StraightThrough(), torch.randn(4, 8)
    host, manager = _grown(model, x, "fc1")
    out = torch.compile(host, backend="aot_eager", fullgraph=True)(x)
    assert same_bits(out, model(x))
    out.sum().backward()
    got, model.fc1.weight.grad = model.fc1.weight.grad, None
    model(x).sum().backward()
    assert same_bits(got, model.fc1.weight.grad)
    manager.cull("low_rank_at_fc1")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host))])
@pytest.mark.parametrize("kind", [Pair, Tied, Frozen, StraightThrough])
def test_copies_of_hosts_run_with_their_seeds(copied, kind):
    model, x = kind(), torch.randn(4, 8)
    host = fxgraft.trace(model, (x,))
    manager = fxgraft.SeedManager(host)
    manager.germinate(list(host.slots)[-1], "low_rank")
    again = copied(host)
    assert same_bits(again(x), host(x))
    assert list(again.state_dict()) == list(host.state_dict())


def test_another_thread_is_not_disturbed_by_tracing():
    other, x = nn.Sequential(*(SkipBlock() for _ in range(5))), torch.randn(4, 8)
    expected = other(x)
    stop, wrong, runs = threading.Event(), [], [0]

    def run():
        while not stop.is_set():
            try:
                runs[0] += 1
                made = torch.zeros(2, 3) + torch.arange(3)
                if type(made) is not torch.Tensor or not same_bits(other(x), expected):
                    wrong.append("another value")
            except Exception as error:
                wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(5):
            host = fxgraft.trace(nn.Sequential(*(Pair() for _ in range(4))), (x,))
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert runs[0] > 5
    assert not host.opaque


def test_a_model_without_data():
    with torch.device("meta"):
        model, x = nn.Sequential(Pair(), SkipBlock()), torch.randn(4, 8)
    host = fxgraft.trace(model, (x,))
    assert not host.opaque
    assert "0.a.fc" in host.slots
    assert host(x).device.type == "meta"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host))])
def test_long_hosts_can_be_copied(copied):
    x = torch.randn(2, 8)
    host = fxgraft.trace(nn.Sequential(*(nn.Linear(8, 8) for _ in range(300))), (x,))
    again = copied(host)
    assert same_bits(again(x), host(x))
    assert list(again.slots) == list(host.slots)
