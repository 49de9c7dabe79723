"""A failure injected into each step of a lifecycle change: afterwards all is as it was before."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import fxgraft
from fxgraft.host import engine
from fxgraft.optimizers import registry
from fxgraft.optimizers.gradients import SeedGradients
from fxgraft.optimizers.registry import SeedParameterRegistry
from tests.harness import assert_same_bits, loss_of, snapshot
from tests.lifecycle.test_cull_properties import bring_to, trained
from tests.lifecycle.test_transactions import PLAN, SLOT, assert_unchanged_by, assert_usable
from tests.seed_modules import Scale

STEPS = {
    "claim the parameters": (SeedParameterRegistry, "claim"),
    "generate the code": (engine, "prepare"),
    "swap the structure": (engine, "set_structure"),
    "compile": (engine, "warm_up"),
    "join the optimizer": (SeedParameterRegistry, "join"),
    "watch the gradients": (SeedGradients, "watch"),
}
ERRORS = [RuntimeError("injected"), KeyboardInterrupt("injected")]


def fail_once(
    monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, error: BaseException, late: bool
) -> None:
    """Let one call of ``method`` raise, before or after it did its work; calls to undo it go through."""
    original = getattr(owner, method)
    calls = iter([True])

    def failing(*args: Any, **kwargs: Any) -> Any:
        first = next(calls, False)
        if first and not late:
            raise error
        result = original(*args, **kwargs)
        if first:
            raise error
        return result

    monkeypatch.setattr(owner, method, failing)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("step", STEPS)
def test_a_germination_that_fails_in_a_step_is_undone(
    step: str, error: BaseException, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = trained(PLAN)
    manager = world[3]
    manager.germinate(SLOT, Scale(), name="other")
    bring_to(manager, "other", "BLENDING")
    with monkeypatch.context() as patched:
        fail_once(patched, *STEPS[step], error, late)
        assert_unchanged_by(lambda: manager.germinate(SLOT, Scale(), name="a"), world, type(error))
    assert_usable(world)
    assert manager.germinate(SLOT, Scale(), name="a").stage is fxgraft.Stage.TRAINING


def test_an_optimizer_that_fails_half_way_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second parameter of a seed cannot join: the first leaves again."""
    world = trained(PLAN)
    second = iter([False, True])
    original = registry._add

    def failing(*given: Any) -> None:
        if next(second, False):
            raise RuntimeError("injected")
        original(*given)

    with monkeypatch.context() as patched:
        patched.setattr(registry, "_add", failing)
        seed = nn.Linear(4, 4)
        assert_unchanged_by(lambda: world[3].germinate(SLOT, seed), world, RuntimeError)
    assert next(second, None) is None
    assert_usable(world)


@pytest.mark.parametrize("action", ["cull", "fossilize"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("step", ["generate the code", "swap the structure", "compile"])
def test_a_removal_that_fails_is_undone(
    step: str, error: BaseException, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = trained(PLAN)
    manager = world[3]
    manager.germinate(SLOT, Scale(), name="a")
    bring_to(manager, "a", "HOLDING")
    with monkeypatch.context() as patched:
        fail_once(patched, *STEPS[step], error, late=False)
        assert_unchanged_by(lambda: getattr(manager, action)("a"), world, type(error))
    getattr(manager, action)("a")
    loss_of(world[0](PLAN.batch(1))).backward()


def test_a_blueprint_may_fail_between_two_that_work() -> None:
    world = trained(PLAN)
    host, optimizer, scheduler, manager = world
    before = snapshot(host, PLAN.batch(9), [optimizer], [scheduler])
    manager.germinate(SLOT, Scale(), name="a")
    assert_unchanged_by(
        lambda: manager.germinate(SLOT, Scale(float("nan")), name="b"), world, fxgraft.errors.BlueprintError
    )
    manager.germinate(SLOT, Scale(), name="b")
    manager.cull("a")
    manager.cull("b")
    assert_same_bits(snapshot(host, PLAN.batch(9), [optimizer], [scheduler]), before, "the host")
