"""What a growth says of its cost, against counts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxgraft import SeedManager
from fxgraft.commands import DEEPEN, SEED
from fxgraft.explore import AutoGrowth
from fxgraft.explore._example_run import BlockFlops
from tests.explore import runs
from tests.explore.runs import Run, X, Y
from tests.explore.test_price import Stack

HIDDEN = 3
MLP = SEED(slot="relu", blueprint="mlp", config={"hidden": HIDDEN})
CANDIDATES = [MLP, SEED(slot="first", blueprint="low_rank", config={"rank": 2})]
EXPLORED, BLEND, HOLD = 4, 3, 2

EXAMPLE, BATCH, HELD_OUT = 4, 16, 48
HOST = 2 * (6 * 4 + 4 * 2)
"""FLOPs of a forward pass of one row: two for each multiply-add."""
OF_MLP, OF_LOW_RANK = 2 * 2 * 4 * HIDDEN, 2 * 2 * 4 * 2


class Counting(Run):
    """It counts the calls of its evaluation."""

    calls = 0

    def evaluate(self) -> list[Tensor]:
        self.calls += 1
        return super().evaluate()

    def grow(self, **options: Any) -> AutoGrowth:
        given = {
            "when": [0.1], "total_steps": 40, "steps": EXPLORED, "blend": BLEND, "hold": HOLD, "gain": -10.0,
            "score": lambda row: float(row.blueprint == "mlp"), "candidates": CANDIDATES, "budget": 9.0,
        }  # fmt: skip
        return self.manager.autogrow(self.evaluate, **{**given, **options})


def test_the_cost_is_what_a_count_by_hand_gives() -> None:
    run = Counting()
    growth = run.grow()
    run.train(20)
    began, kept = (
        next(entry["step"] for entry in growth.history if entry["what"] in what)
        for what in (("blending", "beginning anew"), ("kept",))
    )
    cost = growth.cost
    explored = 3 * BATCH * EXPLORED * (OF_MLP + OF_LOW_RANK)
    tried = 3 * BATCH * (kept - began) * OF_MLP
    # The host is looked at when the growth begins, when it explores, and before the two candidates are
    # measured; two evaluations judge, and one weighs what was kept.
    before, after = 1 + 1 + (1 + 2), 2 + 1
    evaluated = HELD_OUT * (before * HOST + after * (HOST + OF_MLP))
    assert (cost["explored"], cost["tried"], cost["evaluated"]) == (explored, tried, evaluated)
    assert cost["evaluations"] == run.calls == before + after
    assert cost["training_steps"] == pytest.approx((explored + tried + evaluated) / (3 * BATCH * HOST))
    assert cost["complete"]
    assert 0 < cost["seconds"] < 60


def test_print_says_what_it_gave_and_what_it_cost() -> None:
    run = Counting()
    growth = run.grow()
    assert "gained: nothing was kept" in str(growth)
    run.train(20)
    head, gained, cost, *_ = str(growth).splitlines()
    size = 6 * 4 + 4 + 2 * 4 + 4 * 2 + 2
    grown = sum(p.numel() for p in run.host.parameters())
    assert f"1 kept; {grown / size:.2f} times the parameters, of 9; " in head
    assert f"{(HOST + OF_MLP) / HOST:.2f} times the FLOPs of a forward pass" in head
    first = torch.stack(Counting().evaluate()).mean().detach()
    assert gained.startswith(f"gained: the loss was {float(first):.4g} before it grew, and ")
    (kept,) = (entry for entry in growth.history if entry["what"] == "kept")
    assert gained.endswith(f"add up to {kept['contribution']:.4g}")
    assert f"for {run.calls} evaluations: as much as {growth.cost['training_steps']:.0f} training" in cost
    assert f"{3 * BATCH * EXPLORED * (OF_MLP + OF_LOW_RANK) / 1000:.3g} k FLOPs to explore" in cost


def test_a_step_of_several_batches_counts_all_and_calls_without_gradients_count_for_nothing() -> None:
    run = Counting()
    growth = run.grow()
    for _ in range(12):
        run.optimizer.zero_grad()
        for _ in range(3):
            F.cross_entropy(run.host(X[:8]), Y[:8]).backward()
            with torch.no_grad():
                run.host(X)
        run.optimizer.step()
        run.manager.step()
    assert growth.cost["explored"] == 3 * (3 * 8) * EXPLORED * (OF_MLP + OF_LOW_RANK)


@pytest.mark.parametrize("culled_after", [1, None])
def test_what_listens_for_the_size_of_a_batch_goes_again(culled_after: int | None) -> None:
    run = Counting()
    growth = run.grow()
    run.train(1)
    assert "BatchSize" in run.host._links.on_call.__qualname__
    if culled_after:
        growth.stop()
    run.train(2)
    assert "BatchSize" not in getattr(run.host._links.on_call, "__qualname__", "")


def test_what_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "NormNet", Stack)
    monkeypatch.setattr(BlockFlops, "of", lambda self, block: None)
    run = Counting()
    growth = run.grow(candidates=DEEPEN(stack="blocks", at="end"))
    run.train(20)
    assert not growth.cost["complete"]
    assert ": at least as much as " in str(growth)


@pytest.mark.parametrize("at", [6, 10])
def test_the_cost_goes_on_after_a_load(at: int, tmp_path: Path) -> None:
    whole = Counting()
    growth = whole.grow()
    whole.train(at)
    whole.manager.save(tmp_path / "run")
    whole.train(20 - at)
    run = Counting()
    run.manager = SeedManager.load(tmp_path / "run", run.host, run.optimizer)
    resumed = run.grow()
    run.train(20 - at)
    ours, theirs = ({**of.cost, "seconds": None} for of in (resumed, growth))
    assert ours == theirs
