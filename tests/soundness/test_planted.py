"""Random models with planted reads and effects: each effect is found, and each read is a condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.host import engine
from fxgraft.util.bits import same_bits
from tests.soundness import other_file, test_effects, test_reads
from tests.soundness import test_reads_by_any_way as ways
from tests.soundness.test_effects import EFFECTS, Context, Gate
from tests.soundness.test_reads import CHANGES, ReadsBetween


def _of_function(m: Any, p: Tensor) -> None:
    other_file.counted.calls = p.detach()


def _of_function_by_name(m: Any, p: Tensor) -> None:
    setattr(other_file.counted, "calls", p.detach())  # noqa: B010


def _of_context(m: Any, p: Tensor) -> None:
    ways.VARIABLE.set(ways.VARIABLE.get() + 1)


def _of_thread(m: Any, p: Tensor) -> None:
    ways.LOCAL.calls = getattr(ways.LOCAL, "calls", 0) + 1


ALL_READS = {**CHANGES, **ways.WAYS}
ALL_EFFECTS: dict[str, Callable[[Any, Tensor], Any]] = {
    **EFFECTS,
    "attribute of a function": _of_function,
    "attribute of a function by name": _of_function_by_name,
    "context variable": _of_context,
    "local of a thread": _of_thread,
    "registry": lambda m, p: other_file.REGISTRY.update(seen=p),
    "weak dictionary": lambda m, p: m.weak_keys.update({m.a: 3.0}),
    "variables of an object": lambda m, p: vars(m.space).update(seen=p),
    "dictionary by modules": lambda m, p: m.by_module.update({m.a: m.by_module[m.a] + 1}),
    "object behind a delegate": lambda m, p: setattr(m.by_held._held, "seen", p),
}
# What a settled state or another path in evaluation stands for is tested one by one; a closure stays changed.
READS = sorted(ALL_READS.keys() - {"mode of a submodule", "no submodule", "closure of a method"})
PLANTED = sorted(ALL_EFFECTS.keys() - {"print", "attribute of a submodule", "generator"})


@dataclass(frozen=True)
class Layer:
    """One layer of a random model: what it does to its value, reads and writes."""

    operation: str
    read: str | None
    effect: str | None


class Planted(ReadsBetween, Gate):
    """A layer of width 6 after a plan."""

    factor = 2.0

    def __init__(self, plan: Layer) -> None:
        nn.Module.__init__(self)
        Gate.__init__(self)
        self.plan = plan
        self.a = nn.Linear(6, 6)
        self.scale, self.flag, self.names, self.act = 1.0, True, ["default"], torch.tanh
        ways.give(self, 6)
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
            h = ALL_READS[self.plan.read][0](self, h)
        if self.plan.effect is not None:
            p = self.gate(h).softmax(-1)
            ALL_EFFECTS[self.plan.effect](self, p)
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


def _put_back() -> None:
    """What effects of a host's call, and of the plain model's, add to in the same place."""
    ways.VARIABLE.set(2.0)
    ways.LOCAL.calls = 0


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    _clear()


@given(plans=st.lists(layers, min_size=1, max_size=4), rows=st.integers(1, 6))
def test_every_effect_is_found_and_every_read_is_a_condition(plans: list[Layer], rows: int):
    _clear()
    with ways.as_it_was(Planted):
        _try(plans, rows)


def _try(plans: list[Layer], rows: int) -> None:
    model = _model(plans)
    reference = _model(plans)
    x = torch.randn(4, 6)
    host = fxgraft.trace(model, (x,))
    assert all(same_bits(p, q) for p, q in zip(model.parameters(), reference.parameters(), strict=True))
    assert test_effects.CALLS == 0
    assert Context.total == 0
    assert not test_effects.AUXILIARY
    assert ways.VARIABLE.get() == 2.0
    assert not hasattr(ways.LOCAL, "calls")
    assert not hasattr(other_file.counted, "calls")
    assert "seen" not in other_file.REGISTRY
    assert not any(vars(layer.space) for layer in model)
    for i, plan in enumerate(plans):
        assert plan.effect is None or str(i) in host.opaque, (plan, host.explain())
    manager = fxgraft.SeedManager(host, check_every=0)
    for name in list(host.slots)[:6]:
        manager.germinate(name, Scaled())
    with torch.no_grad():
        ours = host(x)
        _put_back()
        assert same_bits(ours, reference(x))
        _put_back()
        for ours, theirs in zip(engine.trees(host)[0], reference, strict=True):
            if ours.plan.read is not None:
                for layer in (ours, theirs):
                    ALL_READS[layer.plan.read][1](layer)
        other = torch.randn(rows, 6)
        before = ways.VARIABLE.get(), dict(vars(ways.LOCAL))
        ours = host(other)
        ways.VARIABLE.set(before[0])
        vars(ways.LOCAL).clear()
        vars(ways.LOCAL).update(before[1])
        assert same_bits(ours, reference(other))
