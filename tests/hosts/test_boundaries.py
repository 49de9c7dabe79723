"""Where the code of a module has no graph, the boundaries of the modules that it calls are slots."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.util.bits import same_bits


class Branching(nn.Module):
    """Its root branches on the input's values, which no graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act(self.fc1(x))
        if h.sum() > 0:
            h = h * 2
        return self.fc2(h)


def host_of(model: nn.Module) -> tuple[fxgraft.Host, torch.Tensor]:
    x = torch.randn(3, 4)
    return fxgraft.trace(model, (x,)), x


def test_every_module_that_the_root_calls_is_a_slot() -> None:
    host, _ = host_of(Branching())
    assert list(host.slots) == ["fc1", "act", "fc2"]
    assert "branches on" in host.rejected[""]
    assert list(host.slots["act"].shape) == [3, 8]


@pytest.mark.parametrize("slot", ["fc1", "act", "fc2"])
def test_a_life_at_a_boundary(slot: str) -> None:
    model = Branching()
    host, x = host_of(model)
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = fxgraft.SeedManager(host, optimizer, strict=True, check_every=1)
    expected = model(x)
    seed = manager.germinate(slot, lambda s: nn.Linear(s.shape[-1], s.shape[-1]))
    assert same_bits(host(x), expected)
    grads = torch.autograd.grad(host(x).sum(), list(model.parameters()))
    assert same_bits(grads, torch.autograd.grad(model(x).sum(), list(model.parameters())))
    host(x).sum().backward()
    manager.step()
    manager.blend(seed, steps=1)
    manager.step()
    assert not torch.equal(host(x), expected)
    for other in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        assert same_bits(other(x), host(x))
    manager.cull(seed)
    assert same_bits(host(x), expected)
    assert vars(host.get_submodule(slot)).keys() == vars(model.get_submodule(slot)).keys()


class Opaque(nn.Module):
    """No graph for its root (it writes down what it saw), but Dynamo follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows = x.shape[0]
        return self.fc2(torch.relu(self.fc1(x)))


def test_a_boundary_compiles_without_a_graph_break() -> None:
    host, x = host_of(Opaque())
    assert "" not in host.regions
    manager = fxgraft.SeedManager(host)
    manager.germinate("fc1", "mlp")
    expected = host(x)
    host.compile(backend="aot_eager", fullgraph=True)
    assert same_bits(host(x), expected)
