"""A host that is called in another form than the traced one is traced anew, before anything grows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.errors import StageError, TraceError
from tests.harness import assert_same_bits

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class BiasBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        h = self.drop(self.norm(self.a(x)))
        return h if bias is None else h + bias


class PassesKeywordsOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = BiasBlock()

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        return self.block(x, bias=bias, **more).tanh()


CALLS: dict[str, dict[str, Any]] = {
    "an argument": {"x": X, "bias": torch.ones(4)},
    "a keyword that is passed on": {"x": X, "count": torch.tensor(3.0)},
}


def snapshot(net: nn.Module) -> dict[str, torch.Tensor]:
    return {**net.state_dict(), "stream": torch.get_rng_state()}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_seeds_run_in_the_calls_that_are_made(name: str, compiled: bool, fresh_compiler: None) -> None:
    host, call = fxgraft.trace(PassesKeywordsOn(), (), {"x": X}), CALLS[name]
    if compiled:
        host.compile(backend="eager")
    assert host.unmet((), {"x": X}) is None
    before = {n: t.clone() for n, t in snapshot(host).items()}
    assert host.unmet((), call) is not None
    host.retrace((), call)
    assert host.unmet((), call) is None
    assert_same_bits(snapshot(host), before, "buffers and streams")
    assert all(not module._forward_pre_hooks for module in host.modules())
    seed = fxgraft.SeedManager(host).germinate("block.a", "mlp", isolated=False)
    host(**call).sum().backward()
    assert any(p.grad is not None for p in seed.module.parameters())
    assert {region.fallbacks for region in host.regions.values()} == {0}


def test_the_value_is_that_of_the_model() -> None:
    torch.manual_seed(0)
    model = PassesKeywordsOn().eval()
    host = fxgraft.trace(model, (), {"x": X})
    call = CALLS["an argument"]
    host.retrace((), call)
    fxgraft.SeedManager(host).germinate("block.a", "mlp")
    assert_same_bits(host(**call), model(**call))
    assert "block.add" in host.slots or any("add" in slot for slot in host.slots)


def test_what_cannot_be_changes_nothing() -> None:
    host = fxgraft.trace(PassesKeywordsOn(), (), {"x": X})
    slots = list(host.slots)
    with pytest.raises(TraceError, match="failed in train mode"):
        host.retrace((), {"x": torch.randn(3, 5)})
    assert list(host.slots) == slots
    assert host.unmet((), {"x": X}) is None
    manager = fxgraft.SeedManager(host)
    manager.germinate("block.a", "mlp", name="a")
    with pytest.raises(StageError, match="expected one without seeds; it has a"):
        host.retrace((), CALLS["an argument"])
    manager.cull("a")
    host.retrace((), CALLS["an argument"])
