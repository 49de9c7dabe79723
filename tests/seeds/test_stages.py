"""The table of stage transitions: what is legal leads where it should, all else is a StageError."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import fxgraft
from fxgraft import Stage
from fxgraft.errors import StageError
from tests.harness import assert_same_bits, snapshot
from tests.lifecycle.test_cull_properties import bring_to, trained
from tests.seed_modules import Scale
from tests.strategies import Plan

PLAN = Plan(("linear",))
SLOT = "body.linear0"

# From design to here: each stage, the actions it allows, and the stage that they lead to.
LEGAL = {
    Stage.TRAINING: {"blend": Stage.BLENDING, "cull": Stage.CULLED},
    Stage.BLENDING: {"blend": Stage.BLENDING, "cull": Stage.CULLED},
    Stage.HOLDING: {"blend": Stage.BLENDING, "cull": Stage.CULLED, "fossilize": Stage.FOSSILIZED},
    Stage.FOSSILIZED: {},
    Stage.CULLED: {},
}
ACTIONS: dict[str, Callable[[fxgraft.SeedManager, fxgraft.Seed], None]] = {
    "blend": lambda manager, seed: manager.blend(seed, steps=2),
    "cull": lambda manager, seed: manager.cull(seed),
    "fossilize": lambda manager, seed: manager.fossilize(seed),
}


def seed_in(stage: Stage) -> tuple:
    world = trained(PLAN)
    manager = world[3]
    seed = manager.germinate(SLOT, Scale(), name="a")
    match stage:
        case Stage.CULLED:
            manager.cull(seed)
        case Stage.FOSSILIZED:
            bring_to(manager, "a", "HOLDING")
            manager.fossilize(seed)
        case _:
            bring_to(manager, "a", stage.name)
    assert seed.stage is stage
    return world, seed


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("stage", LEGAL, ids=lambda s: s.name)
def test_transition(stage: Stage, action: str) -> None:
    world, seed = seed_in(stage)
    host, optimizer, scheduler, manager = world
    if action in LEGAL[stage]:
        ACTIONS[action](manager, seed)
        assert seed.stage is LEGAL[stage][action]
        return
    before = snapshot(host, PLAN.batch(9), [optimizer], [scheduler])
    with pytest.raises(StageError) as caught:
        ACTIONS[action](manager, seed)
    message = str(caught.value)
    assert "'a'" in message
    assert stage.name in message
    legal = message.rpartition(": ")[2].split(", ")
    possible = [name for name in legal if name in ACTIONS]
    assert sorted(possible) == sorted(LEGAL[stage])
    assert seed.stage is stage
    assert_same_bits(snapshot(host, PLAN.batch(9), [optimizer], [scheduler]), before, "the host")


@pytest.mark.parametrize("action", ACTIONS)
def test_an_unknown_seed_is_refused_by_name(action: str) -> None:
    manager = trained(PLAN)[3]
    manager.germinate(SLOT, Scale(), name="known")
    with pytest.raises(StageError, match=r"'nobody'.*known"):
        ACTIONS[action](manager, "nobody")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid", lambda p: p**2])
@pytest.mark.parametrize(("start", "to"), [(0.0, 1.0), (0.0, 0.3), (1.0, 0.0), (0.3, 0.3)])
def test_ramps_are_monotone_and_end_at_their_target(schedule: object, start: float, to: float) -> None:
    manager = trained(PLAN)[3]
    seed = manager.germinate(SLOT, Scale())
    if start:
        manager.blend(seed, to=start, steps=1)
        manager.step()
    manager.blend(seed, to=to, steps=7, schedule=schedule)
    alphas = [seed.alpha]
    for i in range(7):
        assert seed.stage is Stage.BLENDING, f"reached its target after {i} of 7 steps"
        manager.step()
        alphas.append(seed.alpha)
    assert seed.stage is Stage.HOLDING
    assert alphas[0] == start
    assert alphas[-1] == to
    assert sorted(alphas, reverse=to < start) == alphas
    assert float(manager.host.graft(seed.name).alpha) == float(torch.tensor(to))
    manager.step()
    assert seed.alpha == to


@pytest.mark.parametrize("schedule", [lambda p: 5 * p - 2, lambda p: 9.0, lambda p: -9.0])
def test_schedules_are_clamped(schedule: Callable[[float], float]) -> None:
    manager = trained(PLAN)[3]
    seed = manager.germinate(SLOT, Scale())
    manager.blend(seed, to=0.5, steps=4, schedule=schedule)
    for _ in range(4):
        manager.step()
        assert 0 <= seed.alpha <= 0.5
    assert seed.alpha == 0.5


def test_a_retarget_goes_on_from_where_alpha_is() -> None:
    manager = trained(PLAN)[3]
    seed = manager.germinate(SLOT, Scale())
    manager.blend(seed, steps=4, schedule="linear")
    manager.step()
    manager.step()
    manager.blend(seed, to=0.0, steps=2, schedule="linear")
    manager.step()
    assert seed.alpha == 0.25
    manager.step()
    assert (seed.alpha, seed.stage) == (0.0, Stage.HOLDING)


@pytest.mark.parametrize(
    "options",
    [{"to": 1.5}, {"to": -0.1}, {"to": float("nan")}, {"steps": -1}, {"steps": 2.5}, {"schedule": "cosin"}],
    ids=str,
)
def test_a_blend_that_cannot_be_changes_nothing(options: dict) -> None:
    host, optimizer, scheduler, manager = trained(PLAN)
    seed = manager.germinate(SLOT, Scale())
    before = snapshot(host, PLAN.batch(9), [optimizer], [scheduler])
    with pytest.raises(ValueError, match=next(iter(options))):
        manager.blend(seed, **options)
    assert (seed.stage, seed.alpha, seed.target) == (Stage.TRAINING, 0.0, None)
    assert_same_bits(snapshot(host, PLAN.batch(9), [optimizer], [scheduler]), before, "the host")


def test_alpha_is_only_read() -> None:
    host = fxgraft.trace(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), (torch.ones(1, 2),))
    seed = fxgraft.SeedManager(host).germinate("0", "mlp")
    with pytest.raises(AttributeError, match=r"manager\.blend"):
        seed.alpha = 1.0
    assert seed.alpha == 0.0
