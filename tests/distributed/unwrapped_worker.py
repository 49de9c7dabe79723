"""A manager that was given the host without its wrapper. Started by test_unwrapped.py."""

from __future__ import annotations

import copy
import gc
import logging
import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fxgraft
from fxgraft.errors import DistributedError
from tests.distributed.ranks import RANK, SIZE, group, model, say

SLOT = "1.relu"
X = torch.zeros(4, 6)


def _traced() -> fxgraft.Host:
    return fxgraft.trace(model(), (X,))


class _Outer(nn.Module):
    """Contains hosts, as a LightningModule or a GAN does."""

    def __init__(self, *hosts: nn.Module):
        super().__init__()
        self.hosts, self.head = nn.ModuleList(hosts), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(sum(host(x) for host in self.hosts))


class _Told(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("fxgraft").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def _same(*modules: nn.Module) -> None:
    """On all ranks, to the bit."""
    for module in modules:
        for name, tensor in module.state_dict().items():
            there = [torch.empty_like(tensor) for _ in range(SIZE)]
            dist.all_gather(there, tensor.contiguous())
            assert all(torch.equal(one, there[0]) for one in there), name


def _train(
    steps: int, trained: nn.Module, optimizer: torch.optim.Optimizer, *managers: fxgraft.SeedManager
) -> None:
    for step in range(steps):
        draw = torch.Generator().manual_seed(10 * step + RANK)
        optimizer.zero_grad()
        trained(torch.randn(4, 6, generator=draw)).square().mean().backward()
        optimizer.step()
        for manager in managers:
            manager.step()


def the_host_alone_is_refused_where_it_is_wrapped() -> None:
    host = _traced()
    ddp = DistributedDataParallel(host)
    with pytest.raises(DistributedError, match=r"expected that wrapper, SeedManager\(ddp, .*2 ranks"):
        fxgraft.SeedManager(host)
    fxgraft.SeedManager(ddp)


def a_wrapper_made_later_is_found_at_the_next_germination_or_step() -> None:
    host = _traced()
    manager = fxgraft.SeedManager(host)
    ddp = DistributedDataParallel(host)
    with pytest.raises(DistributedError, match="expected that wrapper"):
        manager.germinate(SLOT, "mlp")
    assert not manager.seeds
    assert not host.grafts()
    with pytest.raises(DistributedError, match="expected that wrapper"):
        manager.step()
    other = _traced()
    manager = fxgraft.SeedManager(other)
    manager.step()
    manager.germinate(SLOT, "mlp", name="a")
    around = DistributedDataParallel(other)
    with pytest.raises(DistributedError, match="expected that wrapper"):
        manager.step()
    del ddp, around


def a_wrapper_around_what_contains_the_host() -> None:
    host = _traced()
    ddp = DistributedDataParallel(_Outer(host))
    with pytest.raises(DistributedError, match=r"around a _Outer that contains it.*ddp=ddp"):
        fxgraft.SeedManager(host)
    optimizer = torch.optim.AdamW(ddp.parameters(), 1e-2)
    manager = fxgraft.SeedManager(ddp, optimizer)
    assert manager.host is host
    manager.germinate(SLOT, nn.Linear(24, 24), name="a", isolated=False)  # other weights on each rank
    _train(3, ddp, optimizer, manager)
    manager.blend("a", steps=2)
    _train(3, ddp, optimizer, manager)
    _same(ddp.module)


def several_hosts_in_one_wrapper() -> None:
    hosts = _traced(), _traced()
    ddp = DistributedDataParallel(_Outer(*hosts))
    optimizer = torch.optim.AdamW(ddp.parameters(), 1e-2)
    with pytest.raises(TypeError, match=r"there are 2.*ddp=ddp"):
        fxgraft.SeedManager(ddp, optimizer)
    with pytest.raises(TypeError, match="got Linear"):
        fxgraft.SeedManager(hosts[0], optimizer, ddp=nn.Linear(1, 1))
    with pytest.raises(TypeError, match="contains the host"):
        fxgraft.SeedManager(_traced(), optimizer, ddp=ddp)
    managers = [fxgraft.SeedManager(host, optimizer, ddp=ddp) for host in hosts]
    for i, manager in enumerate(managers):
        manager.germinate(SLOT, nn.Linear(24, 24), name=f"s{i}", isolated=i == 0)
        _train(2, ddp, optimizer, *managers)
        manager.blend(f"s{i}", steps=2)
        _train(3, ddp, optimizer, *managers)
    managers[0].fossilize("s0")
    _train(3, ddp, optimizer, *managers)
    _same(ddp.module)


def a_wrapper_around_the_model_that_was_traced() -> None:
    plain = model()
    host = fxgraft.trace(plain, (X,))
    ddp = DistributedDataParallel(plain)
    with pytest.raises(
        DistributedError, match=r"around a Sequential that has its parameters and does not call it"
    ):
        fxgraft.SeedManager(host)
    del ddp


def fabric_wraps_the_host() -> None:
    from lightning.fabric import Fabric

    told = _Told()
    fabric = Fabric(accelerator="cpu", devices=SIZE, strategy="ddp")
    fabric.launch()
    for contains in (False, True):
        host = _traced()
        whole = _Outer(host) if contains else host
        called, optimizer = fabric.setup(whole, torch.optim.AdamW(whole.parameters(), 1e-2))
        manager = fxgraft.SeedManager(called, optimizer)
        manager.germinate(SLOT, nn.Linear(24, 24), name="a", isolated=False)
        for step in range(4):
            draw = torch.Generator().manual_seed(10 * step + RANK)
            optimizer.zero_grad()
            fabric.backward(called(torch.randn(4, 6, generator=draw)).square().mean())
            optimizer.step()
            manager.step()
        _same(whole)
    assert not told.said, told.said


def processes_of_their_own_are_told_once_and_not_hurt() -> None:
    told = _Told()
    host = _traced()
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = fxgraft.SeedManager(host, optimizer)
    ddp = DistributedDataParallel(copy.deepcopy(host))  # of another host
    for i in range(1 + RANK):  # each rank grows what it likes
        manager.germinate(SLOT, "mlp", name=f"s{i}")
    _train(2 + RANK, host, optimizer, manager)
    assert [text.split(",")[0] for text in told.said] == ["this is one of 2 processes"], told.said
    del ddp


def a_group_of_one_rank_is_not_hurt() -> None:
    told = _Told()
    groups = [dist.new_group([rank]) for rank in range(SIZE)]
    host = _traced()
    ddp = DistributedDataParallel(host, process_group=groups[RANK])
    manager = fxgraft.SeedManager(ddp)
    manager.germinate(SLOT, "mlp", name="a")
    manager.step()
    assert not told.said
    fxgraft.SeedManager(_traced())
    bare = _traced()
    wrapped = DistributedDataParallel(bare, process_group=groups[RANK])
    fxgraft.SeedManager(bare).germinate(SLOT, "mlp")
    del wrapped


def a_wrapper_that_is_gone_does_not_count() -> None:
    host = _traced()
    ddp = DistributedDataParallel(host)
    ddp.__dict__["itself"] = ddp
    gc.disable()
    del ddp
    fxgraft.SeedManager(host)
    gc.enable()


def a_look_costs_little() -> None:
    host = _traced()
    began = time.perf_counter()
    manager = fxgraft.SeedManager(host)
    manager.step()
    assert time.perf_counter() - began < 5
    began = time.perf_counter()
    for _ in range(100):
        manager.step()
    assert time.perf_counter() - began < 1, "only once after each change"


def main() -> None:
    with group():
        for case in (
            the_host_alone_is_refused_where_it_is_wrapped,
            a_wrapper_made_later_is_found_at_the_next_germination_or_step,
            a_wrapper_around_what_contains_the_host,
            several_hosts_in_one_wrapper,
            a_wrapper_around_the_model_that_was_traced,
            fabric_wraps_the_host,
            processes_of_their_own_are_told_once_and_not_hurt,
            a_group_of_one_rank_is_not_hurt,
            a_wrapper_that_is_gone_does_not_count,
            a_look_costs_little,
        ):
            case()
            say(case.__name__)


if __name__ == "__main__":
    main()
