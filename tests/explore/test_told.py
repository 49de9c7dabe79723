"""What the guide and the source say of the default score is what ``benchmarks/results/explore.json`` has."""

from __future__ import annotations

import inspect
import json
import statistics
from typing import Any

from benchmarks.explore import guide, results, rule
from benchmarks.explore.page import page
from benchmarks.explore.plan import REPEATS
from fxgraft.explore import scoring

DATA: dict[str, Any] = json.loads((results.OUT / "explore.json").read_text(encoding="utf-8"))
WORKLOADS: dict[str, Any] = DATA["workloads"]
TEXT = " ".join(guide.PAGE.read_text(encoding="utf-8").split())
EVERYWHERE = {mean.score: mean for mean in rule.means(WORKLOADS)}
REPEATING = {mean.score: mean for mean in rule.means(WORKLOADS, rule.decisive(WORKLOADS))}
DEFAULT, MIX = results.NAMED[scoring.DEFAULT], results.NAMED["expected_and_parameters"]


def both(mean: rule.Mean, between: str = " and ") -> str:
    return f"{mean.spearman:.2f}{between}{mean.regret:.2f}"


def test_the_pages_are_made_from_the_results() -> None:
    written = guide.PAGE.read_text(encoding="utf-8")
    assert written == guide.into_page(written, DATA)
    assert (results.OUT / "explore.md").read_text(encoding="utf-8") == page(DATA)


def test_the_default_of_the_library_is_the_one_that_the_results_are_about() -> None:
    assert DATA["default"] == DEFAULT
    for found in WORKLOADS.values():
        (row,) = (row for row in found["scores"] if row["score"] == DEFAULT)
        assert {key: found[key] for key in ("spearman", "regret", "cost")}.items() <= row.items()


def test_the_default_deviates_from_the_rule_as_it_is_told() -> None:
    assert not EVERYWHERE.keys() & set(rule.SEPARATE)
    assert rule.winner(list(EVERYWHERE.values())).score == MIX
    assert rule.winner(list(REPEATING.values())).score == MIX
    assert min(EVERYWHERE.values(), key=lambda mean: mean.regret).score == DEFAULT
    assert min(REPEATING.values(), key=lambda mean: mean.regret).score == DEFAULT
    assert max(EVERYWHERE.values(), key=lambda mean: mean.spearman).score == "parameters"
    said = (
        f"`expected_and_parameters` (rho {both(EVERYWHERE[MIX], ', regret ')}; `parameters`, which has the "
        f"highest rho, has {both(EVERYWHERE['parameters'])}), on the three whose truth repeats it is the "
        f"same one ({both(REPEATING[MIX])}). The default has {both(EVERYWHERE[DEFAULT])}, on those three "
        f"{both(REPEATING[DEFAULT])}: a lower rho, and the lowest regret"
    )
    assert len(rule.decisive(WORKLOADS)) == 3
    assert said in TEXT
    source = inspect.getsource(scoring)
    docstring = " ".join(source[source.index("DEFAULT = ") :].partition("def ")[0].split())
    ours, theirs = EVERYWHERE[DEFAULT], EVERYWHERE[MIX]
    assert (
        f"with a mean rho of {theirs.spearman:.2f} and a regret of {theirs.regret:.2f} over four workloads, "
        f"against {ours.spearman:.2f} and {ours.regret:.2f}." in docstring
    )


def test_a_workload_whose_truth_does_not_repeat_decides_nothing_and_that_is_told() -> None:
    weak = {name: found["repeats"] for name, found in WORKLOADS.items() if found["repeats"] < REPEATS}
    assert weak.keys() == {"MLP"}
    assert f"the MLP ({weak['MLP']:.2f}) decides nothing" in TEXT


def test_the_default_reaches_its_goals_wherever_the_truth_repeats_and_that_is_told() -> None:
    for name in rule.decisive(WORKLOADS):
        found = WORKLOADS[name]
        assert found["spearman"] >= 0.6, name
        assert found["regret"] <= 0.25, name
        assert found["cost"] <= 0.1, name
    assert "On each of the three others the default reaches the goals that were set beforehand" in TEXT


def test_what_the_fresh_random_seeds_say_is_told() -> None:
    gpt, cnn, mlp = (WORKLOADS[name]["fresh"] for name in ("GPT", "CNN", "MLP"))
    assert (
        f"On the others it has a rho of {gpt['spearman']:.2f} (GPT), {cnn['spearman']:.2f} and "
        f"{mlp['spearman']:.2f} (digits, CNN and MLP) and a regret of {gpt['regret']:.2f}, "
        f"{cnn['regret']:.2f} and {mlp['regret']:.2f};" in TEXT
    )


def test_what_one_run_says_is_told() -> None:
    one = {
        name: [f"{found['one run'][key]:.2f}" for key in ("spearman", "regret")]
        for name, found in WORKLOADS.items()
    }
    assert (
        "has a rho of {} and a regret of {} (MLP), {} and {} (CNN), {} and {} (Fashion-MNIST), "
        "{} and {} (GPT).".format(*one["MLP"], *one["CNN"], *one["Fashion"], *one["GPT"])
        in TEXT
    )
    costs = [1 / found["cost"] for found in WORKLOADS.values()]
    assert f"at {5 * round(min(costs) / 5)} to {5 * round(max(costs) / 5)} times the cost" in TEXT


def test_the_regret_of_a_contribution_is_told() -> None:
    score = guide.COLUMNS["`contribution`"]
    pairs = []
    for found in WORKLOADS.values():
        rows = {row["score"]: row["regret"] for row in found["scores"]}
        if score in rows:
            pairs.append((rows[score], rows[DEFAULT]))
    theirs, ours = (statistics.fmean(pair[i] for pair in pairs) for i in (0, 1))
    assert len(pairs) == 3
    assert f"its mean regret is {theirs:.2f}, that of the default {ours:.2f}" in TEXT
