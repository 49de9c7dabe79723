"""`manager.fuse`: fossils become part of the host's own layers, in a live run."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxgraft
from fxgraft.errors import ChannelError, SlotError, StageError
from fxgraft.telemetry import Memory
from tests.harness import assert_same_bits, snapshot
from tests.resizing.models import Gated, Mlp
from tests.resizing.test_widening import half, outputs, steps


class WithPart(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.inner, self.part, self.head = nn.Linear(4, 4), part, nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.part(self.inner(x)).relu())


class Bare(nn.Module):
    """Without a bias behind the hidden units."""

    def __init__(self, hidden=8):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, hidden), nn.GELU(), nn.Linear(hidden, 3, bias=False)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


BATCH = torch.randn(5, 4)


def grown(host_part, seed, source="inner", slot="part", optimizer=torch.optim.SGD, **options):
    host = fxgraft.trace(host_part if isinstance(host_part, WithPart) else WithPart(host_part), (BATCH,))
    trainer = optimizer(host.parameters(), lr=0.05)
    manager = fxgraft.SeedManager(host, trainer, check_every=0)
    manager.germinate(slot, seed, source=source, name="a", isolated=False, **options)
    steps(host, trainer, manager, BATCH, 2)
    manager.blend("a", steps=0)
    manager.fossilize("a")
    steps(host, trainer, manager, BATCH, 2)
    return host, trainer, manager


def test_a_branch_of_the_same_class_is_joined():
    host, optimizer, manager = grown(Mlp(), Mlp())
    before = outputs(host, BATCH)
    assert manager.fuse("a") == {"a": "part.up"}
    torch.testing.assert_close(outputs(host, BATCH), before)
    assert (host.part.up.out_features, host.part.down.in_features) == (16, 16)
    assert list(host.state_dict()) == list(WithPart(Mlp()).state_dict())
    assert not manager.seeds
    assert not host.structure.placements
    assert all("forward" not in region.module.__dict__ for region in host.regions.values())
    steps(host, optimizer, manager, BATCH)


def test_a_branch_is_matched_node_by_node():
    branch = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    part = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))
    host, _, manager = grown(part, branch, slot="part.2")
    before = outputs(host, BATCH)
    assert manager.fuse() == {"a": "part.0"}
    assert host.part[0].out_features == 14
    torch.testing.assert_close(outputs(host, BATCH), before)


def test_gated_units_are_joined_in_pairs():
    host, _, manager = grown(Gated(fused=True), Gated(fused=True))
    before = outputs(host, BATCH)
    manager.fuse("a")
    assert host.part.both.out_features == 32
    torch.testing.assert_close(outputs(host, BATCH), before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_goes_on_as_without_fusing(momentum):
    def make(parameters, lr):
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum)

    parts = WithPart(Bare()), Bare(5)
    fused, plain = (grown(*copy.deepcopy(parts), optimizer=make) for _ in range(2))
    fused[2].fuse("a")
    for host, optimizer, manager in (fused, plain):
        steps(host, optimizer, manager, BATCH, 5)
    torch.testing.assert_close(outputs(fused[0], BATCH), outputs(plain[0], BATCH))


def test_an_average_is_fused_as_well():
    torch.manual_seed(0)
    host = fxgraft.trace(WithPart(Mlp()), (BATCH,))
    optimizer = torch.optim.SGD(host.parameters(), lr=0.05)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    average = AveragedModel(host, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    fxgraft.averaging.follow(host, average)
    manager.germinate("part", Mlp(), source="inner", name="a", isolated=False)
    manager.blend("a", steps=0)
    manager.fossilize("a", force=True)
    for _ in range(2):
        steps(host, optimizer, manager, BATCH, 1)
        average.update_parameters(host)
    before = outputs(average, BATCH)
    manager.fuse("a")
    torch.testing.assert_close(outputs(average, BATCH), before)
    average.update_parameters(host)


def test_a_linear_fossil_goes_into_the_weights():
    host, optimizer, manager = grown(Mlp(), "low_rank", source=None, slot="inner", rank=2)
    before, moments = outputs(host, BATCH), len(optimizer.param_groups[0]["params"])
    assert manager.fuse("a") == {"a": "inner"}
    torch.testing.assert_close(outputs(host, BATCH), before)
    assert len(optimizer.param_groups[0]["params"]) < moments
    steps(host, optimizer, manager, BATCH)


@pytest.mark.parametrize("kind", ["joined", "folded"])
def test_copies_that_autocast_keeps_of_the_weights_do_not_outlive_them(kind):
    folded = {"seed": "low_rank", "source": None, "slot": "inner", "rank": 2}
    host, optimizer, manager = grown(Mlp(), **({"seed": Mlp()} if kind == "joined" else folded))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        host(BATCH)
        manager.fuse("a")
        inside = half(host, BATCH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(inside, half(host, BATCH), "outputs and gradients")
    steps(host, optimizer, manager, BATCH)


def test_a_fused_run_is_saved_and_loaded(tmp_path):
    host, _, manager = grown(Mlp(), Mlp())
    manager.fuse("a")
    manager.save(tmp_path / "run")
    fresh = fxgraft.trace(WithPart(Mlp()), (BATCH,))
    again = torch.optim.SGD(fresh.parameters(), lr=0.05)
    fxgraft.SeedManager.load(tmp_path / "run", fresh, again, check_every=0)
    assert_same_bits(host.state_dict(), fresh.state_dict())
    assert_same_bits(host(BATCH), fresh(BATCH))


@pytest.mark.parametrize(
    ("seed", "options", "said"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), {}, "another form"),
        (nn.Linear(4, 3), {}, "is one Linear"),
        (nn.Linear(3, 3), {"source": None, "slot": "relu"}, "no layer's result"),
        (Mlp(), {"mode": "convex"}, "is convex"),
    ],
)
def test_what_cannot_be_fused_stays(seed, options, said):
    host, optimizer, manager = grown(Mlp(), seed, **options)
    before = snapshot(host, BATCH, [optimizer])
    with pytest.raises(SlotError, match=said):
        manager.fuse("a")
    assert manager.fuse() == {}
    assert_same_bits(before, snapshot(host, BATCH, [optimizer]))


class Twice(WithPart):
    """Whose part is called two times: a branch beside one of the calls cannot be a part of both."""

    def __init__(self):
        super().__init__(Activated())
        self.again, self.part.down = Activated(), nn.Linear(8, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.again(self.inner(x)) @ torch.ones(3, 4)
        return self.head(self.part(self.part(x)))


def test_a_branch_that_would_change_the_outputs_does_not_keep_the_others_from_being_fused():
    host = fxgraft.trace(Twice(), (BATCH,))
    optimizer = torch.optim.SGD(host.parameters(), lr=0.05)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    branch = Activated()
    branch.down = nn.Linear(8, 4)
    manager.germinate("part", branch, source="matmul", name="bad", isolated=False)
    manager.germinate("again", Activated(), source="inner", name="good", isolated=False)
    for name in ("bad", "good"):
        manager.blend(name, steps=0)
        manager.fossilize(name, force=True)
    before = outputs(host, BATCH)
    with pytest.raises(ChannelError, match="bad: expected the outputs of before"):
        manager.fuse("bad")
    assert manager.fuse() == {"good": "again.up"}
    assert list(manager.seeds) == ["bad"]
    assert (host.again.up.out_features, host.part.up.out_features) == (16, 8)
    torch.testing.assert_close(outputs(host, BATCH), before)


@pytest.mark.parametrize("kind", ["joined", "folded"])
def test_hooks_on_the_parameters_of_a_fossil_are_not_lost_silently(kind):
    folded = {"seed": "low_rank", "source": None, "slot": "inner", "rank": 2}
    host, optimizer, manager = grown(Mlp(), **({"seed": Mlp()} if kind == "joined" else folded))
    name, parameter = list(manager.seeds["a"].module.named_parameters())[-1]
    handle = parameter.register_hook(lambda grad: grad * 2)
    before = snapshot(host, BATCH, [optimizer])
    with pytest.raises(SlotError, match=f"hooks on its parameter {name}"):
        manager.fuse("a")
    assert_same_bits(before, snapshot(host, BATCH, [optimizer]))
    handle.remove()
    assert manager.fuse("a")


def test_nothing_is_fused_or_deepened_in_inference_mode():
    *_, manager = grown(Mlp(), Mlp())
    for action in (lambda: manager.fuse("a"), lambda: manager.deepen("part")):
        with torch.inference_mode(), pytest.raises(StageError, match="inference_mode"):
            action()


def test_only_fossils():
    host = fxgraft.trace(WithPart(Mlp()), (BATCH,))
    manager = fxgraft.SeedManager(host)
    manager.germinate("part", Mlp(), source="inner", name="a")
    with pytest.raises(StageError, match="TRAINING, and no fossil"):
        manager.fuse("a")


@pytest.mark.parametrize(
    "step",
    [
        "fxgraft.resizing._joining.grow",
        "fxgraft.resizing._joining._fill",
        "fxgraft.resizing._fusing.difference",
        "fxgraft.lifecycle.lifecycle.swap",
    ],
)
def test_a_failure_leaves_the_fossil(step, monkeypatch):
    host, optimizer, manager = grown(Mlp(), Mlp())
    before = snapshot(host, BATCH, [optimizer])

    def failing(*args, **kwargs):
        raise ChannelError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(step, failing)
        with pytest.raises((ChannelError, SlotError), match="injected"):
            manager.fuse("a")
    assert_same_bits(before, snapshot(host, BATCH, [optimizer]))
    assert manager.fuse("a") == {"a": "part.up"}


class Activated(nn.Module):
    """Two layers, registered in either order, with any function between them."""

    def __init__(self, act=torch.tanh, is_reversed=False, hidden=8):
        super().__init__()
        self.act = act
        for name in ("down", "up") if is_reversed else ("up", "down"):
            self.add_module(name, nn.Linear(4, hidden) if name == "up" else nn.Linear(hidden, 3))

    def forward(self, x):
        return self.down(self.act(self.up(x)))


class Masked(WithPart):
    def forward(self, x):
        return super().forward(x).masked_fill(torch.tensor([False, True]), -1e9)


@pytest.mark.parametrize(("size", "is_lost"), [(1e-3, True), (1.0, False)])
def test_a_bias_that_rounding_takes_is_not_added(size, is_lost):
    torch.manual_seed(0)
    batch = BATCH.bfloat16()
    host = fxgraft.trace(WithPart(Mlp()).bfloat16(), (batch,))
    sink = Memory()
    manager = fxgraft.SeedManager(host, sinks=[sink])
    seed = manager.germinate("part", Mlp().bfloat16(), source="inner", name="a", isolated=False)
    with torch.no_grad():
        host.part.down.bias.fill_(1.0)
        seed.module.down.bias.fill_(size)
    manager.blend("a", steps=0)
    manager.fossilize("a", force=True)
    if is_lost:
        with pytest.raises(SlotError, match=r"changes part\.down\.bias by .* it would be lost"):
            manager.fuse("a")
        assert host.part.down.bias.dtype is torch.bfloat16
    else:
        manager.fuse("a")
        (event,) = sink.of_kind("fused")
        assert 0 <= event.data["max_abs"] < 0.1


def test_a_masked_output_hides_no_difference_of_the_others():
    host, _, manager = grown(Masked(Activated()), Activated(lambda x: x.tanh() * 1.1))
    with pytest.raises((SlotError, ChannelError)):
        manager.fuse("a")
    assert host.part.up.out_features == 8
