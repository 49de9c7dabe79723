"""An exploration and a growth go on from their own states, and refuse others by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fxgraft.errors import CheckpointError
from tests.explore.runs import Run
from tests.harness import assert_same_bits

FEW = {"blueprints": ["mlp", "low_rank"]}


def saved(steps: int = 3) -> tuple[Run, dict[str, Any]]:
    """A run with an exploration that goes on, which is forgotten, and the state of that."""
    run = Run()
    exploration = run.manager.explore("relu", evaluate=run.evaluate, steps=20, **FEW)
    run.train(steps)
    state = copy.deepcopy(exploration.state_dict())
    run.manager._routines.clear()
    exploration._unfreeze()
    return run, state


def put(*path: Any) -> Callable[[dict[str, Any]], object]:
    """Replace what is at that path by the last of these."""

    def change(state: Any) -> None:
        for key in path[:-2]:
            state = state[key]
        state[path[-2]] = path[-1]

    return change


def without(*path: Any) -> Callable[[dict[str, Any]], object]:
    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


DAMAGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda state: state.clear(), "it has no 'steps'"),
    (without("entries"), "it has no 'entries'"),
    (put("entries", None), "NoneType"),
    (put("entries", [None, None]), "NoneType"),
    (put("steps", "3"), "steps: expected a whole number.*got '3'"),
    (put("began", -1), "began: expected a whole number"),
    (lambda state: state["entries"].pop(), "it has 1 candidates; expected 2"),
    (without("entries", 0, "command"), "it has no 'command'"),
    (without("entries", 1, "width"), "it has no 'width'"),
    (without("entries", 1, "birth"), "it has no 'birth'"),
    (without("entries", 1, "seed"), "it has no 'seed'"),
    (put("entries", 1, "status", "soon"), "status: expected one of"),
    (put("entries", 1, "width", {"group": "x"}), "width|Width"),
    (without("entries", 1, "birth", "first"), "it has no 'first'"),
    (put("entries", 1, "birth", "first", []), "first: expected a tensor like each parameter"),
    (put("entries", 1, "birth", "steps", None), "steps: expected a whole number"),
    (put("entries", 1, "birth", 3), "int"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_damaged_state_is_refused_by_name(damage: Callable[[dict[str, Any]], object], said: str) -> None:
    run, state = saved()
    whole = copy.deepcopy(state)
    damage(state)
    before = [len(p._post_accumulate_grad_hooks or ()) for p in run.manager.seed_parameters()]
    with pytest.raises(
        CheckpointError,
        match=f"exploration cannot go on from that state: .*{said}.*Call explore with the arg",
    ):
        run.manager.explore("relu", evaluate=run.evaluate, steps=20, state=state, **FEW)
    assert before == [len(p._post_accumulate_grad_hooks or ()) for p in run.manager.seed_parameters()]
    assert not run.manager._routines
    resumed = run.manager.explore("relu", evaluate=run.evaluate, steps=20, state=whole, **FEW)
    assert_same_bits(whole, resumed.state_dict(), "the state")


@pytest.mark.parametrize("state", [3, "state", [], torch.zeros(2)], ids=["int", "str", "list", "tensor"])
def test_what_is_no_state_is_refused_by_name(state: Any) -> None:
    run, _ = saved()
    with pytest.raises(CheckpointError, match=r"exploration cannot go on from that state: .*Call explore"):
        run.manager.explore("relu", evaluate=run.evaluate, steps=20, state=state, **FEW)


@pytest.mark.parametrize(
    ("slot", "options"),
    [
        ("relu", {"blueprints": ["mlp", "norm"]}),
        ("relu", {"blueprints": ["mlp"]}),
        ("first", FEW),
        ("relu", {**FEW, "steps": 4}),
    ],
)
def test_the_state_of_another_exploration_is_refused_by_name(slot: str, options: dict[str, Any]) -> None:
    run, state = saved()
    with pytest.raises(CheckpointError, match=r"Call explore with the\s+arguments of the saved run"):
        run.manager.explore(slot, evaluate=run.evaluate, state=state, **{"steps": 20, **options})


def test_a_growth_says_the_same_in_its_own_words() -> None:
    run = Run()
    growth = run.manager.autogrow(run.evaluate, "relu", when=[0.0], total_steps=40, steps=20, **FEW)
    run.train(3)
    state = copy.deepcopy(growth.state_dict())
    del state["exploration"]["entries"][0]["width"]
    with pytest.raises(
        CheckpointError,
        match=r"the growth cannot go on from that state: .*it has no 'width'.*Call autogrow with",
    ):
        growth.load_state_dict(state)
