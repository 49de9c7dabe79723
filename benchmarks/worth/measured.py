"""The seventh experiment: growth that measures its blocks several times, beside the best fixed size.

See PREREGISTERED_SEVENTH.md.
"""

from __future__ import annotations

from typing import Any

from benchmarks.worth import copied, peers
from benchmarks.worth.against_best import best_of, sizes_of, unknown_size
from benchmarks.worth.analysis import Arms, estimate
from benchmarks.worth.guesses_arms import EARLY
from benchmarks.worth.measured_arms import MEASURED
from benchmarks.worth.questions import percent, told, with_error


def answers(arms: Arms) -> dict[str, Any] | None:
    """For one task: its arms, and how those that grow compare to the best size; None before."""
    sizes = sizes_of(arms)
    if not sizes or not arms.seeds(MEASURED):
        return None
    best = best_of(arms, sizes)
    return {
        "best_fixed": best,
        "arms": {name: copied.row(arms, name) for name in arms.arms if arms.seeds(name)},
        "grown": {name: unknown_size(arms, name, best) for name in (MEASURED, EARLY) if arms.seeds(name)},
        "measured_minus_early": peers.over(arms, MEASURED, arms, EARLY) if arms.seeds(EARLY) else None,
    }


def over_all(found: dict[str, Any]) -> dict[str, Any] | None:
    """Question 2: by how much measuring several times is above measuring once, over the tasks with both."""
    compared = [of["measured_minus_early"] for of in found.values() if of["measured_minus_early"]]
    values = [value for one in compared for value in one["values"]]
    return told(estimate(values)) if values else None


def table(found: dict[str, Any]) -> list[str]:
    """Markdown: the answers for one task, then its arms, the lowest loss first."""
    heads = ("growth", "blocks", "above the best size", "minus it, nats", "over the sweep")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, of in found["grown"].items():
        cells = [", ".join(map(str, of["blocks"])), percent(of["above_best_by"])]
        cells += [f"{with_error(of['minus_best'])} ({found['best_fixed']})", f"{of['over_the_sweep']:.2f}"]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    if (over := found["measured_minus_early"]) is not None:
        lines.append(f"| `{MEASURED}` minus `{EARLY}` | | | {with_error(over)} | |")
    return [*lines, "", *copied.table(found["arms"])]
