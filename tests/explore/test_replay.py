"""The log of the commands of a growth makes its run again, with wider layers and deeper stacks, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from fxgraft.commands import DEEPEN, SEED
from fxgraft.explore import AutoGrowth
from fxgraft.telemetry import Event
from tests.explore import runs
from tests.explore.runs import Run
from tests.explore.test_autogrow import BLOCKS, QUICK, Residual, Stacked, wider
from tests.harness import assert_same_bits, frozen

NORM = SEED(slot="enter", blueprint="norm")
STEPS = 30
Commands = list[tuple[int, dict[str, Any]]]


def deeper(run: Run, candidates: Any = (*BLOCKS, NORM)) -> AutoGrowth:
    """A block grows before all else."""
    given = {**QUICK, "blueprints": None, "when": [0.1], "total_steps": 40, "gain": -10.0}
    return run.manager.autogrow(
        run.evaluate, candidates, 9.0, score=lambda row: float(row.deepens == ("blocks", 1)), **given
    )


def deeper_at_once(run: Run) -> AutoGrowth:
    return deeper(run, DEEPEN(stack="blocks", at="end"))


def deeper_by_copies(run: Run) -> AutoGrowth:
    return deeper(run, DEEPEN(stack="blocks", at="end", init="copy", optimizer_state="copy"))


def grown(grow: Callable[[Run], AutoGrowth]) -> tuple[Run, list[Tensor], Commands]:
    """A run that grew, its losses, and its commands by step."""
    events: list[Event] = []
    run = Run(sinks=[events.append])
    growth = grow(run)
    losses = run.train(STEPS)
    assert {"kept", "widened"} & {entry["what"] for entry in growth.history}, growth
    return run, losses, [(event.step, event.data["command"]) for event in events if event.kind == "command"]


def replayed(said: Commands) -> tuple[Run, list[Tensor]]:
    """Another run, in which nothing but these commands changes anything."""
    again, losses = Run(), list[Tensor]()
    for step in range(1, STEPS + 1):
        losses += again.train(1)
        for command in [command for at, command in said if at == step]:
            assert again.manager.handle(command)
    return again, losses


CASES = [
    pytest.param(Residual, wider, {"SEED", "CULL", "BLEND", "FOSSILIZE", "FUSE"}, id="wider"),
    pytest.param(Stacked, deeper, {"SEED", "CULL", "DEEPEN", "FOSSILIZE"}, id="deeper"),
    pytest.param(Stacked, deeper_at_once, {"DEEPEN", "FOSSILIZE"}, id="deeper, nothing explored"),
    pytest.param(Stacked, deeper_by_copies, {"DEEPEN", "CULL"}, id="deeper by copies"),
]


@pytest.mark.parametrize(("model", "grow", "types"), CASES)
def test_its_commands_make_the_run_again_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, model: Any, grow: Callable[[Run], AutoGrowth], types: set[str]
) -> None:
    monkeypatch.setattr(runs, "NormNet", model)
    monkeypatch.setattr("fxgraft.explore.table.Row.helps", False)  # the winner begins anew
    run, losses, said = grown(grow)
    assert {command["type"] for _, command in said} == types
    again, found = replayed(said)
    assert_same_bits(losses, found, "losses")
    assert_same_bits(frozen(run.host.state_dict()), frozen(again.host.state_dict()), "weights")
    ours, theirs = ([frozen(state) for state in of.optimizer.state.values()] for of in (run, again))
    assert_same_bits(ours, theirs, "moments")


@pytest.mark.parametrize(("model", "grow", "types"), CASES[:2])
def test_where_winners_have_learnt_in_isolation_the_structure_is_the_same(
    monkeypatch: pytest.MonkeyPatch, model: Any, grow: Callable[[Run], AutoGrowth], types: set[str]
) -> None:
    monkeypatch.setattr(runs, "NormNet", model)
    monkeypatch.setattr("fxgraft.explore.table.Row.helps", True)
    run, _, said = grown(grow)
    assert {command["type"] for _, command in said} == types | {"BLEND"}
    again, _ = replayed(said)
    ours, theirs = ({name: x.shape for name, x in of.host.state_dict().items()} for of in (run, again))
    assert ours == theirs
    assert again.host.structure == run.host.structure
