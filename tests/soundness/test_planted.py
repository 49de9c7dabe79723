"""Random models with planted reads and effects: each effect is found, and each read is a condition."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.util.bits import same_bits
from tests.soundness import test_effects, test_reads
from tests.soundness.test_effects import EFFECTS, Context, Gate
from tests.soundness.test_reads import CHANGES, Net

# What a settled state or another path in evaluation stands for is tested one by one.
READS = sorted(CHANGES.keys() - {"mode of a submodule", "no submodule"})
PLANTED = sorted(EFFECTS.keys() - {"print", "attribute of a submodule", "generator"})


@dataclass(frozen=True)
class Layer:
    """One layer of a random model: what it does to its value, reads and writes."""

    operation: str
    read: str | None
    effect: str | None


class Planted(Net, Gate):
    """A layer of width 6 after a plan."""

    def __init__(self, plan: Layer) -> None:
        nn.Module.__init__(self)
        Gate.__init__(self)
        self.plan = plan
        self.a = nn.Linear(6, 6)
        self.scale, self.flag, self.names, self.act = 1.0, True, ["default"], torch.tanh
        self.settings, self.slotted, self.kinds = test_reads.Settings(), Slotted(), {"on": True}

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.plan.operation == "sum":
            h = h + x
        elif self.plan.operation == "in place":
            h = h.mul_(2.0)
        elif self.plan.operation == "size":
            h = h - h.mean(0) if h.shape[0] > 3 else h
        if self.plan.read is not None:
            h = CHANGES[self.plan.read][0](self, h)
        if self.plan.effect is not None:
            p = self.gate(h).softmax(-1)
            EFFECTS[self.plan.effect](self, p)
        return h


layers = st.builds(
    Layer,
    operation=st.sampled_from(["plain", "sum", "in place", "size"]),
    read=st.none() | st.sampled_from(READS),
    effect=st.none() | st.sampled_from(PLANTED),
)


class Scaled(nn.Module):
    """A seed for a value of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _model(plans: list[Layer]) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*map(Planted, plans))


class Slotted:
    """Read in one slot and written in another."""

    __slots__ = ("flag", "last")

    def __init__(self) -> None:
        self.flag, self.last = True, None


def _clear() -> None:
    test_effects.CALLS, Context.total = 0, 0
    test_effects.AUXILIARY.clear()
    test_effects.TOTALS["calls"] = 0


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    _clear()


THOROUGH = settings().max_examples > 100


@settings(max_examples=1000 if THOROUGH else settings().max_examples)
@given(plans=st.lists(layers, min_size=1, max_size=4), rows=st.integers(1, 6))
def test_every_effect_is_found_and_every_read_is_a_condition(plans: list[Layer], rows: int):
    _clear()
    model = _model(plans)
    reference = copy.deepcopy(model)
    x = torch.randn(4, 6)
    host = fxgraft.trace(model, (x,))
    assert all(same_bits(p, q) for p, q in zip(model.parameters(), reference.parameters(), strict=True))
    assert test_effects.CALLS == 0
    assert Context.total == 0
    assert not test_effects.AUXILIARY
    for i, plan in enumerate(plans):
        assert plan.effect is None or str(i) in host.opaque, (plan, host.explain())
    manager = fxgraft.SeedManager(host, check_every=0)
    for name in list(host.slots)[:6]:
        manager.germinate(name, Scaled())
    with torch.no_grad():
        assert same_bits(host(x), reference(x))
        for ours, theirs in zip(host.trees()[0], reference, strict=True):
            if ours.plan.read is not None:
                for layer in (ours, theirs):
                    CHANGES[layer.plan.read][1](layer)
        other = torch.randn(rows, 6)
        assert same_bits(host(other), reference(other))
