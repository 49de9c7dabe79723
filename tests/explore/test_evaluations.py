"""How often an exploration and a growth evaluate: not more often than they say, and nothing twice."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from fxgraft import SeedManager
from fxgraft.commands import DEEPEN, SEED
from fxgraft.explore import AutoGrowth
from tests.explore import runs
from tests.explore.runs import Run
from tests.explore.test_price import Stack

CANDIDATES = [SEED(slot="relu", blueprint="mlp"), SEED(slot="first", blueprint="norm")]


class Counting(Run):
    """It says at which step of the manager each evaluation was, and of which state of the host."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.at: list[int] = []

    def evaluate(self) -> list[Tensor]:
        self.at.append(self.manager.steps)
        return super().evaluate()


@pytest.mark.parametrize("repeats", [1, 3])
def test_an_exploration_of_n_candidates_takes_n_and_two(repeats: int) -> None:
    run = Counting()
    run.explored(CANDIDATES, steps=3, repeats=repeats)
    assert run.at == [0] + [3] * repeats * (1 + len(CANDIDATES))


def test_a_candidate_that_was_not_trained_is_not_evaluated() -> None:
    run = Counting()
    exploration = run.manager.explore(CANDIDATES, evaluate=run.evaluate, steps=4)
    still = {id(p) for p in run.manager.seeds[exploration.table[0].seed or ""].module.parameters()}  # type: ignore[union-attr]
    for group in run.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in still]
    run.train(4)
    by = {row.slot: row for row in exploration.table}
    assert by["relu"].reason.startswith("it was not trained")
    assert by["first"].status == "measured"
    assert run.at == [0, 4, 4]


def test_where_nothing_was_trained_nothing_is_evaluated() -> None:
    run = Counting()
    run.manager = SeedManager(run.host, check_every=0)
    exploration = run.explored(CANDIDATES, steps=4)
    assert all(row.reason.startswith("it was not trained") for row in exploration.table), exploration
    assert run.at == [0]


def grown(run: Counting, candidates: Any, when: Any, **options: Any) -> AutoGrowth:
    given = {"steps": 3, "blend": 2, "hold": 2, "total_steps": 40, "gain": 1e9, **options}
    return run.manager.autogrow(run.evaluate, candidates, 9.0, when, **given)


def counts(run: Counting) -> dict[int, int]:
    return {step: run.at.count(step) for step in run.at}


def test_a_round_looks_at_the_host_once() -> None:
    run = Counting()
    growth = grown(run, CANDIDATES, [0.1])
    run.train(30)
    assert growth.done
    explored = next(entry["step"] for entry in growth.history if entry["what"] == "exploring")
    judged = next(entry["step"] for entry in growth.history if entry["what"] == "dropped")
    assert counts(run) == {0: 1, explored: 1, explored + 3: 1 + len(CANDIDATES), judged: 2}


def test_a_block_is_tried_after_one_look_at_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "NormNet", Stack)
    run = Counting()
    growth = grown(run, DEEPEN(stack="blocks", at="end"), [0.1])
    run.train(30)
    (began,) = [entry["step"] for entry in growth.history if entry["what"] == "deepening"]
    (judged,) = [entry["step"] for entry in growth.history if entry["what"] == "dropped"]
    assert counts(run) == {0: 1, began: 1, judged: 2}


def test_a_loss_that_the_evaluation_tells_is_not_computed_again() -> None:
    run = Counting()
    growth = grown(run, CANDIDATES, "flat", window=2, flat=2.0)
    for _ in range(4):
        run.manager.step()
    assert growth.phase == "exploring"
    assert counts(run) == {0: 1, 2: 1, 4: 1}


def test_what_is_held_is_looked_at_once_for_its_price_and_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "NormNet", Stack)
    run = Counting()
    given = {"steps": 3, "blend": 2, "hold": 2, "total_steps": 40, "gain": "steps", "price": 0.0}
    block = DEEPEN(stack="blocks", at="end")
    growth = run.manager.autogrow(run.evaluate, block, {"flops": 9.0}, [0.1], **given)
    run.train(30)
    (began,) = [entry["step"] for entry in growth.history if entry["what"] == "deepening"]
    judged = next(entry["step"] for entry in growth.history if entry["what"] in ("kept", "dropped"))
    kept = 1 if any(entry["what"] == "kept" for entry in growth.history) else 0  # `Rounds.kept` looks, too
    assert counts(run) == {0: 1, began: 1, judged: 3 + kept}
