"""What all runs came to: numbers for ``summary.json``, a table, and sentences that claim no more."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from fxgraft.demo._training import ARMS, FIXED, GROWN, Record
from fxgraft.util.tables import text_table
from fxgraft.util.text import pluralize

Records = Mapping[str, Sequence[Record]]
"""By arm, one for each random seed, in the same order."""

SMALLEST = next(iter(FIXED))
"""The arm that those that grow begin as."""


def summarize(records: Records, recompiles: int | None, seconds: float) -> dict[str, Any]:
    """Everything in JSON types.

    Args:
        records: of all arms.
        recompiles: graphs that were compiled while alpha moved; None where nothing was compiled.
        seconds: how long all took.
    """
    arms = {arm: _arm(records[arm]) for arm in ARMS}
    grown = [record for arm in GROWN for record in records[arm]]
    isolated = [
        _isolated(own, small)
        for arm in GROWN
        for own, small in zip(records[arm], records[SMALLEST], strict=True)
    ]
    summary: dict[str, Any] = {
        "arms": arms,
        "best_fixed": min(FIXED, key=lambda arm: arms[arm]["test_loss"]["mean"]),
        "isolation": {
            "losses_compared": sum(record.first_change for record in grown),
            "losses_equal_to_the_bit": all(isolated),
            "candidates": sum(record.candidates for record in grown),
            "gradient_checks": sum(record.isolation[0] for record in grown),
            "violations": sum(record.isolation[1] for record in grown),
        },
        "recompiles_on_alpha": recompiles,
        "history": [
            {"arm": record.arm, "random_seed": record.random_seed, **entry}
            for record in grown
            for entry in record.history
        ],
        "seconds": seconds,
    }
    summary["verdict"] = verdict(summary)
    return summary


def _arm(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "test_loss": estimate([record.test_loss for record in records]),
        "blocks": [record.blocks for record in records],
        "parameters": [record.parameters for record in records],
        "steps": [record.steps for record in records],
        "flops": {kind: estimate([r.flops[kind] for r in records])["mean"] for kind in records[0].flops},
        "seconds": {
            kind: estimate([r.seconds[kind] for r in records])["mean"] for kind in records[0].seconds
        },
    }


def _isolated(grown: Record, small: Record) -> bool:
    """Whether the losses until the first change of the host are those of the run that did not grow."""
    steps = grown.first_change
    ours, theirs = (array("d", record.losses[:steps]) for record in (grown, small))
    return len(theirs) == steps and ours.tobytes() == theirs.tobytes()


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard error of some runs; the error of one run is None."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_error": error, "runs": list(values)}


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """Sentences: grown against each fixed size at equal FLOPs, and against the search for the best."""
    arms, best = summary["arms"], summary["best_fixed"]
    said = [
        compare(arms[grown]["test_loss"], arms[arm]["test_loss"], grown, arm)
        for grown in GROWN
        for arm in FIXED
    ]
    for grown in GROWN:
        apart = 100 * (arms[grown]["test_loss"]["mean"] / arms[best]["test_loss"]["mean"] - 1)
        said.append(
            f"To find the best fixed size ({best}) took {len(FIXED)} runs; {grown} took the FLOPs of one, "
            f"and its loss is {abs(apart):.1f} % {'higher' if apart > 0 else 'lower'}."
        )
    return said


def compare(grown: Mapping[str, Any], other: Mapping[str, Any], arm: str, other_arm: str) -> str:
    """A difference is called one where it is larger than two standard errors of it."""
    apart = grown["mean"] - other["mean"]
    figures = f"{grown['mean']:.3f} against {other['mean']:.3f} nats"
    if grown["standard_error"] is None or other["standard_error"] is None:
        return f"{arm} and {other_arm}: no verdict from one run: {figures}."
    error = math.hypot(grown["standard_error"], other["standard_error"])
    if abs(apart) <= 2 * error:
        return f"{arm} and {other_arm}: no difference beyond two standard errors: {figures}."
    which = "better" if apart < 0 else "WORSE"
    return f"{arm} is {which} than {other_arm}, by {abs(apart):.3f} ± {error:.3f}: {figures}."


def table(summary: Mapping[str, Any]) -> str:
    """The arms side by side."""
    headers = (
        "arm",
        "test loss",
        "blocks",
        "parameters",
        "steps",
        "GFLOPs training",
        "GFLOPs growth",
        "CPU s",
    )
    rows = []
    for arm, found in summary["arms"].items():
        loss, flops = found["test_loss"], found["flops"]
        error = "" if loss["standard_error"] is None else f" ± {loss['standard_error']:.3f}"
        rows.append(
            (
                arm,
                f"{loss['mean']:.3f}{error}",
                _range(found["blocks"]),
                _range(found["parameters"]),
                _range(found["steps"]),
                round(flops["training"] / 1e9),
                round(flops["growth"] / 1e9),
                round(sum(found["seconds"].values())),
            )
        )
    return text_table(headers, rows)


def history(record: Record) -> str:
    """What growth did in one run."""
    headers = ("step", "what", "where", "contribution", "reason")
    rows = [
        (entry["step"], entry["what"], _where(entry), entry["contribution"], entry["reason"])
        for entry in record.history
    ]
    return text_table(headers, rows)


def _where(entry: Mapping[str, Any]) -> str:
    return f"{entry['blueprint']} at {entry['slot']}" if entry["slot"] else ""


def facts(summary: Mapping[str, Any]) -> list[str]:
    """The other measurements, a line each."""
    found = summary["isolation"]
    same = "the same, bit for bit" if found["losses_equal_to_the_bit"] else "NOT the same"
    lines = [
        f"isolation: until the first change, {found['losses_compared']:,} losses of the grown runs and of "
        f"the runs of {SMALLEST} are {same}, while {pluralize(found['candidates'], 'candidate')} trained",
        f"isolation: the host's gradients compared with and without seeds in "
        f"{pluralize(found['gradient_checks'], 'step')}; {found['violations']} differed",
    ]
    if summary["recompiles_on_alpha"] is not None:
        lines.append(f"compiling: {summary['recompiles_on_alpha']} graphs compiled while alpha changed")
    return [*lines, f"took {summary['seconds']:.0f} s"]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
