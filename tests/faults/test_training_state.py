"""What an optimizer, or a load, would make of a seed later is seen to at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import BlueprintError
from tests.harness import assert_same_bits, snapshot


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))


X = torch.linspace(-1, 1, 24).view(4, 6)
HOST_MODEL = "2"


def train(host: nn.Module, optimizer: torch.optim.Optimizer, manager: SeedManager, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        host(X).square().mean().backward()
        optimizer.step()
        manager.step()


# Optimizers


def test_muon_alone_refuses_biases_at_germination() -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 2, bias=False)), (X,))
    optimizer = torch.optim.Muon(host.parameters(), 1e-2)
    manager = SeedManager(host, optimizer)
    before = snapshot(host, X, [optimizer])
    with pytest.raises(BlueprintError, match=r"up\.bias cannot be trained: Muon takes matrices"):
        manager.germinate("0", "mlp", name="a")
    assert_same_bits(snapshot(host, X, [optimizer]), before, "the host")
    seed = manager.germinate("0", "low_rank", name="a")  # matrices only
    train(host, optimizer, manager, 2)
    assert seed.stage is Stage.TRAINING


def test_lbfgs_takes_no_seeds() -> None:
    """One direction for all parameters together: a seed would turn the host's, isolated or not."""
    host = fxgraft.trace(model(), (X,))
    manager = SeedManager(host, torch.optim.LBFGS(host.parameters(), 0.1))
    with pytest.raises(BlueprintError, match=r"LBFGS takes one step along one direction.*AdamW"):
        manager.germinate(HOST_MODEL, "mlp", name="a")
    assert not manager.seeds


# Buffers


class Borrows(nn.Module):
    def __init__(self, buffer: torch.Tensor):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("statistics", buffer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.statistics += 1
        return self.linear(x)


@pytest.mark.parametrize("view", [False, True])
def test_a_buffer_of_the_host_is_refused_at_germination(view: bool) -> None:
    host = fxgraft.trace(model(), (X,))
    manager = SeedManager(host)
    theirs = host.get_submodule("1").running_mean
    seed = Borrows(theirs.view(2, 4) if view else theirs)
    before = snapshot(host, X)
    with pytest.raises(BlueprintError, match="statistics belongs to the host"):
        manager.germinate(HOST_MODEL, seed)
    assert_same_bits(snapshot(host, X), before, "the host")
    host.to(torch.float64)  # whose buffers are others
    with pytest.raises(BlueprintError, match="statistics belongs to the host"):
        manager.germinate(HOST_MODEL, Borrows(host.get_submodule("1").running_mean))
    manager.germinate(HOST_MODEL, Borrows(torch.zeros(8)))


# Loading with assign=True


def test_optimizers_follow_parameters_that_a_load_replaces() -> None:
    def begin() -> tuple[fxgraft.Host, torch.optim.Optimizer, SeedManager]:
        host = fxgraft.trace(model(), (X,))
        optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
        manager = SeedManager(host, optimizer)
        manager.germinate(HOST_MODEL, "mlp", name="a", hidden=4)
        train(host, optimizer, manager, 2)
        return host, optimizer, manager

    host, optimizer, manager = begin()
    plain, plain_optimizer, plain_manager = begin()
    state = copy.deepcopy(host.state_dict())
    state = {n: nn.Parameter(t) if n in dict(host.named_parameters()) else t for n, t in state.items()}
    host.load_state_dict(state, assign=True)
    assert host.get_parameter("0.weight") is state["0.weight"]
    here = list(map(id, host.parameters()))
    assert sorted(here) == sorted(id(p) for g in optimizer.param_groups for p in g["params"])
    assert {id(p) for p in optimizer.state} == set(here)
    train(host, optimizer, manager, 3)
    train(plain, plain_optimizer, plain_manager, 3)
    assert_same_bits(dict(host.state_dict()), dict(plain.state_dict()), "as after a plain load")
    # The hooks are at the new ones: a NaN is dropped.
    before = [p.detach().clone() for p in manager.seed_parameters()]
    hook = manager.seeds["a"].module.register_forward_hook(lambda module, args, out: out * float("nan"))
    optimizer.zero_grad()
    host(X).square().mean().backward()
    hook.remove()
    assert all(p.grad is None for p in manager.seed_parameters())
    assert all(torch.equal(p, b) for p, b in zip(manager.seed_parameters(), before, strict=True))
    manager.cull("a")
    left = {p for group in optimizer.param_groups for p in group["params"]}
    assert left == set(host.parameters()) == set(optimizer.state)


def test_a_paused_seed_stays_paused_through_a_load() -> None:
    host = fxgraft.trace(model(), (X,))
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = SeedManager(host, optimizer)
    seed = manager.germinate(HOST_MODEL, "mlp", name="a")
    manager.pause(seed)
    host.load_state_dict(copy.deepcopy(host.state_dict()), assign=True)
    before = [p.detach().clone() for p in manager.seed_parameters()]
    train(host, optimizer, manager, 2)
    assert all(torch.equal(p, b) for p, b in zip(manager.seed_parameters(), before, strict=True))
