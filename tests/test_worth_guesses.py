"""The sixth experiment of `benchmarks.worth`: which runs there are, an early block, what guesses cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.worth import __main__ as command
from benchmarks.worth import guesses, results, summary
from benchmarks.worth.analysis import Arms
from benchmarks.worth.arms import arms
from benchmarks.worth.budgeted import BudgetedTrainer
from benchmarks.worth.guesses_arms import EARLY, FIXED_RATES, GROWN_RATES
from benchmarks.worth.learner import Learner
from benchmarks.worth.plan import plan_of
from benchmarks.worth.protocols import PROTOCOLS
from benchmarks.worth.training import Run
from tests.test_worth import SCALE, tiny, without_seconds
from tests.test_worth_elsewhere import named, record

PROTOCOL = PROTOCOLS["guesses"]


@pytest.mark.parametrize("task", PROTOCOL.scales)
def test_all_runs_are_known_at_once_with_the_rates_that_are_given(task: str):
    runs = plan_of(PROTOCOL, task, {}).missing()
    assert not any(run.tuning for run in runs)
    assert {run.seed for run in runs} == set(PROTOCOL.seeds)
    rates: dict[str, set[float]] = {}
    for run in runs:
        rates.setdefault(run.arm.removesuffix("-other"), set()).add(run.rate)
    for depth, given in FIXED_RATES[task].items():
        assert rates.pop(f"fixed-{depth}") == set(given)
    assert EARLY in rates
    assert set.union(*rates.values()) == {GROWN_RATES[task]}
    assert len(runs) == len({run.name for run in runs}) == 3 * len(arms(PROTOCOL, task))


def early(scratch: Path, **options: object) -> dict[str, object]:
    """The end of a run of `EARLY` on the tiny workload."""
    task = replace(tiny(), scale=replace(SCALE, steps=60, points=20))
    arm = arms(PROTOCOL, "gpt")[EARLY]
    arm = replace(arm, changes=((0.3, 2),), options={**arm.options, **options})
    return BudgetedTrainer(Run("gpt", EARLY, 0, 0.003), arm, task, scratch).train()


def test_the_early_block_comes_at_its_share_of_the_budget_without_a_trial(tmp_path: Path):
    whole = early(tmp_path, first=2.0)  # nothing is tried
    (end,) = whole["ends"]
    assert (end["blocks"], end["history"]) == (2, [])
    limit = 60 * tiny().step_flops(8)
    assert {point["blocks"] for point in end["curve"] if point["flops"] < 0.3 * limit} == {1}
    assert {point["blocks"] for point in end["curve"] if point["flops"] > 0.4 * limit} == {2}
    assert sum(end["flops"].values()) <= limit
    assert without_seconds(early(tmp_path, first=2.0)) == without_seconds(whole)


def test_further_blocks_are_tried_and_the_learning_rate_falls_with_each(tmp_path: Path, monkeypatch):
    rates: list[float] = []
    monkeypatch.setattr(Learner, "step", _seen(rates, Learner.step))
    (end,) = early(tmp_path, first=0.4, price=0.0)["ends"]
    tried = [entry["what"] for entry in end["history"]]
    assert tried[0] == "deepening"
    assert end["blocks"] == 2 + tried.count("kept")
    constant = rates[rates.index(0.003) :]
    assert any(rate == pytest.approx(0.003 / 2**0.5) for rate in constant)
    assert not any(1.001 * 0.003 / 2**0.5 < rate < 0.003 for rate in constant), (
        "it falls at once, not on a line"
    )


def _seen(rates: list[float], step):
    def seen(self, batch, share):
        rates.append(share * self.setting.rate)
        return step(self, batch, share)

    return seen


def of(arm: str, *losses: float) -> list[dict]:
    return [
        record(arm, seed, loss, workload="brown") for seed, loss in zip(PROTOCOL.seeds, losses, strict=True)
    ]


RUNS = named(
    *of("fixed-2", 1.50, 1.52, 1.54),
    *of("fixed-2-other", 1.60, 1.60, 1.60),
    *of("fixed-4", 1.80, 1.80, 1.80),
    *of("fixed-4-other", 1.70, 1.72, 1.74),
    *of("copies-4", 1.60, 1.62, 1.64),
    *of(EARLY, 1.51, 1.53, 1.55),
)


def test_a_guess_is_compared_with_the_better_rate_of_its_size_and_with_the_best_size():
    found = guesses.answers(Arms(PROTOCOL, "brown", RUNS))
    assert found["best_fixed"] == "fixed-2"
    four = found["guesses"]["4"]
    assert four["fixed"] == "fixed-4-other"
    assert four["fixed_above_best_by"] == pytest.approx(1.72 / 1.52 - 1, abs=1e-5)
    assert four["grown_above_best_by"] == pytest.approx(1.62 / 1.52 - 1, abs=1e-5)
    assert four["grown_minus_fixed"]["mean"] == pytest.approx(-0.1)
    early = found["early"]
    assert (early["near"], early["blocks"]) == (True, [2, 2, 2])
    assert early["minus_best"]["mean"] == pytest.approx(0.01)
    assert early["over_the_sweep"] == pytest.approx(1 / 6, abs=1e-4)
    assert early["minus"]["copies-4"]["mean"] == pytest.approx(-0.09)
    lines = guesses.table(found)
    assert "| 4 blocks | 13.2 % | 6.6 % | -0.1000 ± 0.0000 |" in lines
    assert "| none: `grow-early` | | 0.7 % | 0.0100 ± 0.0000 minus fixed-2; 2, 2, 2 blocks |" in lines
    assert guesses.answers(Arms(PROTOCOL, "brown", {})) is None


def test_a_size_with_fewer_random_seeds_is_not_the_best_one():
    lucky = named(record("fixed-8", PROTOCOL.seeds[0], 1.0, workload="brown"))
    found = guesses.answers(Arms(PROTOCOL, "brown", {**RUNS, **lucky}))
    assert found["best_fixed"] == "fixed-2"
    assert found["guesses"]["8"]["fixed_above_best_by"] == pytest.approx(1.0 / 1.5 - 1, abs=1e-5)


def test_only_wrong_guesses_count_and_only_sure_differences():
    found = {"brown": guesses.answers(Arms(PROTOCOL, "brown", RUNS))}
    assert guesses.cheaper(found) == {"cases": 1, "lower": 1, "higher": 0}
    case = found["brown"]["guesses"]["4"]["grown_minus_fixed"]
    case |= {"mean": 0.1, "standard_error": 0.049}
    assert guesses.cheaper(found) == {"cases": 1, "lower": 0, "higher": 1}
    case["standard_error"] = 0.051
    assert guesses.cheaper(found) == {"cases": 1, "lower": 0, "higher": 0}
    assert guesses.wrong("long") == ()


def test_the_committed_answers_are_what_the_committed_runs_say():
    told = json.loads((command.COMMITTED / summary.FILE).read_text(encoding="utf-8"))
    found = json.loads(json.dumps(summary.guessed(command.COMMITTED)))
    assert found
    assert found == {key: told[key] for key in found}
    kept = results.read(command.COMMITTED / "worth" / "guesses")
    assert {record["run"]["seed"] for record in kept.values()} == set(PROTOCOL.seeds)
