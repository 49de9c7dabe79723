"""A module whose class is changed after tracing: refused where it is other code, taken where it only adds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import TraceError
from fxgraft.util.bits import same_bits


class Patchable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bend(self.l(x)) + x

    def bend(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class OtherForward(Patchable):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.l(x)) + x


class OtherMethod(Patchable):
    def bend(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Unrelated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(x)


class OnlyAdds(Patchable):
    def reshard(self) -> None:
        """As those mixins have it that frameworks put in front of a class."""


X = torch.randn(8, 4)


def grown() -> tuple[SeedManager, nn.Module]:
    torch.manual_seed(0)
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), Patchable()), (X,))
    manager = SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    manager.germinate("1.tanh", "mlp", name="a")
    return manager, host.get_submodule("1")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("cls", [OtherForward, OtherMethod, Unrelated])
def test_a_class_of_other_code_is_refused_by_name(cls: type, compiled: bool, fresh_compiler: None) -> None:
    manager, module = grown()
    if compiled:
        manager.host.compile(backend="eager")
    expected = manager.host(X)
    module.__class__ = cls
    with pytest.raises(TraceError, match=rf"class of '1' was changed.* from Patchable to {cls.__name__}"):
        manager.host(X)
    module.__class__ = Patchable
    assert same_bits(manager.host(X), expected)


def test_it_is_the_class_at_tracing_that_counts() -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), Patchable()), (X,))
    first, module = host.get_submodule("0"), host.get_submodule("1")
    module.__class__ = OtherForward
    assert same_bits(host(X), module.forward(first(X))), "nothing grew there yet"
    seed = SeedManager(host).germinate("1.tanh", "mlp")
    with pytest.raises(TraceError, match="put Patchable back"):
        host(X)
    assert seed.is_live


def test_after_a_cull_the_new_class_runs() -> None:
    manager, module = grown()
    module.__class__ = OtherForward
    manager.cull("a")
    h = manager.host.get_submodule("0")(X)
    assert same_bits(manager.host(X), torch.relu(manager.host.get_submodule("1.l")(h)) + h)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a class that only adds": lambda module: setattr(module, "__class__", OnlyAdds),
    "a parametrized layer": lambda module: parametrizations.weight_norm(module.l),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_class_that_only_adds_runs_on(change: str) -> None:
    manager, module = grown()
    expected = manager.host(X)
    CHANGES[change](module)
    for _ in range(2):
        torch.testing.assert_close(manager.host(X), expected)
