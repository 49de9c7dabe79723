"""From the records of all runs to ``summary.json`` and the verdict."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fxgraft.demo.records import Record
from fxgraft.util.bits import same_tensor

ARMS = ("baseline", "disabled", "grown", "scratch", "no_isolation")
Records = Mapping[str, Sequence[Record]]
"""Arm -> its runs, in the order of the random seeds."""


def summarize(
    records: Records, execution: Mapping[str, str], compiles: int, seconds: float
) -> dict[str, Any]:
    """All that ``summary.json`` holds."""
    grown = records["grown"]
    accuracies = {f"{arm}_accuracy": accuracy([r.accuracy for r in records[arm]]) for arm in ARMS}
    steps = [ms for record in grown for ms in record.step_ms]
    # Without the very first step, which compiles the host as it is.
    trained = [ms for record in grown for ms in record.train_ms[1:]]
    return {
        "verdict": verdicts(accuracies),
        **accuracies,
        "flops": {arm: _flops(records[arm]) for arm in ARMS},
        "baseline_parameters": records["baseline"][0].parameters,
        "grown_parameters": [record.parameters for record in grown],
        "disabled_matches_baseline": losses_match(records["baseline"], records["disabled"]),
        "isolation_violations": sum(record.isolation_violations for record in grown),
        "isolation_gradients_compared": sum(record.isolation_compared for record in grown),
        "compiles": compiles,
        "compiles_by_arm": {arm: sum(record.compiles for record in records[arm]) for arm in ARMS},
        "recompiles_on_alpha": sum(record.recompiles_on_alpha for record in grown),
        "median_step_ms": statistics.median(steps),
        "longest_step_ms": max(steps),
        "longest_step_without_commands_ms": max(trained),
        "seeds": [
            {"random_seed": r.random_seed, **asdict(seed), "final_stage": seed.stage}
            for r in grown
            for seed in r.seeds
        ],
        "execution": dict(execution),
        "random_seeds": [record.random_seed for record in grown],
        "training_steps": len(grown[0].losses),
        "seconds": seconds,
        "torch": torch.__version__,
    }


def accuracy(runs: Sequence[float]) -> dict[str, Any]:
    """Mean, spread (the sample's standard deviation; 0 of a single run) and the runs themselves."""
    spread = statistics.stdev(runs) if len(runs) > 1 else 0.0
    return {"mean": statistics.fmean(runs), "spread": spread, "runs": list(runs)}


def losses_match(ours: Sequence[Record], theirs: Sequence[Record]) -> bool:
    """Whether two arms had the same loss, to the bit, at every step with every random seed."""
    return len(ours) == len(theirs) and all(
        same_tensor(torch.tensor(a.losses), torch.tensor(b.losses)) for a, b in zip(ours, theirs, strict=True)
    )


def verdicts(accuracies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One plain sentence for each comparison of the grown arm."""
    others = {
        "baseline": "the baseline",
        "scratch": "the same architecture trained from scratch",
        "no_isolation": "the same growth without isolation",
    }
    ours = accuracies["grown_accuracy"]
    return [compare(ours, accuracies[f"{arm}_accuracy"], name) for arm, name in others.items()]


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> str:
    """A win or a loss is a difference of means greater than both spreads together; else there is none."""
    difference = ours["mean"] - theirs["mean"]
    band = ours["spread"] + theirs["spread"]
    numbers = f"{_percent(ours)} against {_percent(theirs)} test accuracy, difference {100 * difference:+.1f}"
    if len(ours["runs"]) < 2 or len(theirs["runs"]) < 2:
        return f"No verdict against {name}: one run has no spread ({numbers})."
    if abs(difference) <= band:
        return f"No difference from {name} beyond the spread over random seeds ({numbers})."
    outcome = "is better than" if difference > 0 else "is WORSE than"
    return f"Grown {outcome} {name}, beyond the spread over random seeds ({numbers})."


def write(summary: Mapping[str, Any], folder: Path) -> None:
    """Write ``summary.json``."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _percent(accuracy: Mapping[str, Any]) -> str:
    return f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['spread']:.1f} %"


def _flops(runs: Sequence[Record]) -> dict[str, float]:
    training = statistics.fmean(record.flops for record in runs)
    decisions = statistics.fmean(record.decision_flops for record in runs)
    return {
        "training": training,
        "decisions": decisions,
        "total": training + decisions,
        "inference_per_image": statistics.fmean(record.inference_flops for record in runs),
    }
