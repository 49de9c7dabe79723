"""A branch is of the form of what it stands beside, whether activations are modules or functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft.errors import SlotError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor]):
        super().__init__()
        self.inner, self.up, self.act, self.down = nn.Linear(8, 8), nn.Linear(8, 12), act, nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return x + self.down(self.act(self.up(x)))


class Branch(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor]):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 5), act, nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


ALIKE: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
    "relu": (nn.ReLU(), F.relu),
    "relu in place": (nn.ReLU(), lambda x: F.relu(x, inplace=True)),
    "relu as a method": (nn.ReLU(inplace=True), lambda x: x.relu()),
    "gelu": (nn.GELU(), F.gelu),
    "gelu by tanh": (nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": (nn.SiLU(), F.silu),
    "tanh": (nn.Tanh(), torch.tanh),
    "leaky relu": (nn.LeakyReLU(0.2), lambda x: F.leaky_relu(x, 0.2)),
    "elu": (nn.ELU(0.5), lambda x: F.elu(x, alpha=0.5)),
}


def host_with_branch(
    own: Callable[[Tensor], Tensor], branch: Callable[[Tensor], Tensor]
) -> tuple[fxgraft.Host, fxgraft.SeedManager]:
    torch.manual_seed(0)
    host = fxgraft.trace(Model(own), (X,))
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(host.parameters()), check_every=0)
    manager.germinate("down", Branch(branch), source="inner", name="wing", isolated=False)
    manager.blend("wing", steps=0)
    manager.fossilize("wing")
    return host, manager


@pytest.mark.parametrize("is_module_beside", [False, True])
@pytest.mark.parametrize("name", ALIKE)
def test_a_module_and_a_function_are_alike(name: str, is_module_beside: bool) -> None:
    own, branch = ALIKE[name][:: 1 if is_module_beside else -1]
    host, manager = host_with_branch(own, branch)
    before = host(X)
    manager.fuse("wing")
    torch.testing.assert_close(host(X), before)
    assert host.up.out_features == 17


def hooked() -> nn.Module:
    module = nn.ReLU()
    module.register_forward_hook(lambda module, args, result: result * 2)
    return module


OTHER: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "another function": (F.gelu, nn.ReLU()),
    "other settings": (F.gelu, nn.GELU("tanh")),
    "another slope": (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU()),
    "a hook": (F.relu, hooked()),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_computes_something_else_is_not(name: str) -> None:
    host, manager = host_with_branch(*OTHER[name])
    before = host(X)
    with pytest.raises(SlotError, match="is of another form than what lies between 'inner' and 'down'"):
        manager.fuse("wing")
    assert torch.equal(host(X), before)
    assert list(manager.seeds) == ["wing"]
