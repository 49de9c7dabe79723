"""The seventh experiment of `benchmarks.worth`: which runs there are, and what several measurements give."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.worth import __main__ as command
from benchmarks.worth import measured, results, summary
from benchmarks.worth.analysis import Arms
from benchmarks.worth.arms import arms
from benchmarks.worth.budgeted import BudgetedTrainer
from benchmarks.worth.guesses_arms import EARLY, FIXED_RATES, GROWN_RATES
from benchmarks.worth.measured_arms import BESIDE, BEST, MEASURED
from benchmarks.worth.plan import plan_of
from benchmarks.worth.protocols import PROTOCOLS
from benchmarks.worth.training import Run
from fxgraft import SeedManager
from tests.test_worth import SCALE, tiny
from tests.test_worth_elsewhere import named, record

PROTOCOL = PROTOCOLS["measured"]


@pytest.mark.parametrize("task", PROTOCOL.scales)
def test_the_runs_are_those_that_were_registered(task: str):
    runs = plan_of(PROTOCOL, task, {}).missing()
    assert {run.seed for run in runs} == {27, 28, 29}
    rates: dict[str, set[float]] = {}
    for run in runs:
        rates.setdefault(run.arm.removesuffix("-other"), set()).add(run.rate)
    fixed = {f"fixed-{depth}": set(FIXED_RATES[task][depth]) for depth in BEST[task]}
    grown = {name: {GROWN_RATES[task]} for name in (MEASURED, EARLY) if name == MEASURED or task in BESIDE}
    assert rates == fixed | grown
    assert len(runs) == len({run.name for run in runs}) == 3 * len(arms(PROTOCOL, task))


def test_a_block_is_measured_eight_times_and_has_to_give_more_than_chance(tmp_path: Path, monkeypatch):
    given: list[dict] = []
    autogrow = SeedManager.autogrow
    monkeypatch.setattr(
        SeedManager,
        "autogrow",
        lambda self, *args, **options: given.append(options) or autogrow(self, *args, **options),
    )
    task = replace(tiny(), scale=replace(SCALE, steps=60, points=20, validation=16))
    arm = arms(PROTOCOL, "gpt")[MEASURED]
    (end,) = BudgetedTrainer(Run("gpt", MEASURED, 0, 0.003), arm, task, tmp_path).train()["ends"]
    (options,) = given
    assert (options["measurements"], options["standard_errors"], options["price"]) == (8, 1.0, 0.1)
    assert end["blocks"] >= 2
    assert sum(end["flops"].values()) <= 60 * tiny().step_flops(8)


def of(arm: str, *losses: float) -> list[dict]:
    return [
        record(arm, seed, loss, workload="thin") for seed, loss in zip(PROTOCOL.seeds, losses, strict=True)
    ]


RUNS = named(
    *of("fixed-3", 0.60, 0.62, 0.64),
    *of("fixed-3-other", 0.50, 0.52, 0.54),
    *of("fixed-4", 0.55, 0.56, 0.57),
    *of(EARLY, 0.52, 0.54, 0.56),
    *of(MEASURED, 0.503, 0.523, 0.543),
)


def test_growth_is_compared_with_the_best_size_and_with_one_measurement():
    found = measured.answers(Arms(PROTOCOL, "thin", RUNS))
    assert found["best_fixed"] == "fixed-3-other"
    grown = found["grown"]
    assert [grown[name]["near"] for name in (MEASURED, EARLY)] == [True, False]
    assert grown[MEASURED]["minus_best"]["mean"] == pytest.approx(0.003)
    assert grown[MEASURED]["over_the_sweep"] == pytest.approx(1 / 4, abs=1e-4)
    assert found["measured_minus_early"]["mean"] == pytest.approx(-0.017)
    assert measured.over_all({"thin": found, "gpt": {"measured_minus_early": None}})["mean"] == pytest.approx(
        -0.017
    )
    lines = measured.table(found)
    assert "| `grow-measured` | 2, 2, 2 | 0.6 % | 0.0030 ± 0.0000 (fixed-3-other) | 0.25 |" in lines
    assert "| `grow-measured` minus `grow-early` | | | -0.0170 ± 0.0000 | |" in lines
    assert measured.answers(Arms(PROTOCOL, "thin", {})) is None


def test_the_committed_answers_are_what_the_committed_runs_say():
    told = json.loads((command.COMMITTED / summary.FILE).read_text(encoding="utf-8"))
    found = json.loads(json.dumps(summary.measured_several_times(command.COMMITTED)))
    assert found
    assert found == {key: told[key] for key in found}
    kept = results.read(command.COMMITTED / "worth" / "measured")
    assert {record["run"]["seed"] for record in kept.values()} == set(PROTOCOL.seeds)
