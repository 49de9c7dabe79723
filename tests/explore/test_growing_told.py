"""What README and the guide say of automatic growth is what ``benchmarks/results/growing.json`` has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.explore import growing
from fxgraft.explore import scoring

ROOT = Path(__file__).parents[2]
DATA: dict[str, Any] = json.loads(growing.RESULTS.with_suffix(".json").read_text(encoding="utf-8"))
GAINS: dict[str, dict[str, Any]] = {name: found["gain"] for name, found in DATA["workloads"].items()}
GUIDE = " ".join(growing.PAGE.read_text(encoding="utf-8").split())
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def percent(workload: str, arm: str, digits: int = 0) -> str:
    return f"{100 * GAINS[workload][arm]['mean']:.{digits}f}"


def test_the_results_are_those_of_the_runs() -> None:
    records = {record["key"]: record for record in DATA["runs"]}
    assert growing.gains_of(records) == DATA["workloads"]


def test_readme_says_what_is_growth_and_what_is_trying() -> None:
    default, trials = scoring.LAYERS_FIRST, "trials"
    assert (
        f"by {percent('Narrow', default)} % on one, and by {percent('MLP', default)} % on the other, where "
        f"trying alone, with all of it taken out again, gives {percent('MLP', trials)} %" in README
    )
    roomy = GAINS["Roomy"][default]
    assert f"by {-100 * roomy['mean']:.0f} ± {100 * roomy['standard_error']:.0f} %" in README
    assert abs(GAINS["GPT"][default]["mean"]) < 0.001
    assert "a small GPT gained nothing" in README


def test_the_guide_says_that_most_of_one_gain_is_not_growth() -> None:
    mlp = GAINS["MLP"]["trials"]
    error = f"{100 * mlp['standard_error']:.1f}"
    assert f"lowers the loss by {percent('MLP', 'trials', 1)} ± {error} % there" in GUIDE
    assert mlp["size"] == 1.0, "all of it is taken out again"
    assert mlp["mean"] > GAINS["MLP"][scoring.LAYERS_FIRST]["mean"] / 2, "most of it: say so otherwise"
    assert abs(GAINS["Narrow"]["trials"]["mean"]) < 0.01
