"""A run saved in any stage and loaded in a fresh process goes on bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.scenarios import SCENARIOS, outcome

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Scenario -> what the run that was never interrupted did, and what one fresh process did."""
    folder = tmp_path_factory.mktemp("runs")
    straight = {}
    for name, scenario in SCENARIOS.items():
        straight[name] = outcome(scenario.saved(folder / f"{name}.ckpt"))
    subprocess.run([sys.executable, "-m", "tests.checkpoint.scenarios", folder], check=True, cwd=ROOT)
    resumed = json.loads((folder / "resumed.json").read_text())
    return {name: (json.loads(json.dumps(straight[name])), resumed[name]) for name in SCENARIOS}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fresh_process_goes_on_bit_for_bit(name: str, runs: dict[str, Any]) -> None:
    straight, resumed = runs[name]
    assert resumed["seeds"] == straight["seeds"]
    assert resumed["codes"] == straight["codes"]
    assert resumed["losses"] == straight["losses"]
    assert resumed["steps"] == straight["steps"]


def test_the_scenarios_are_in_the_stages_that_they_say(runs: dict[str, Any]) -> None:
    stages = {row[0] for straight, _ in runs.values() for row in straight["seeds"].values()}
    assert stages == {"TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"}
    assert runs["germinated"][0]["seeds"] == {}
    assert runs["paused in mid-ramp"][0]["seeds"]["a"][4] is True
    losses = {tuple(straight["losses"]) for straight, _ in runs.values()}
    assert len(losses) > len(SCENARIOS) // 2, "the scenarios do not differ"
