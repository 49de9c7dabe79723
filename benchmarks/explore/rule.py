"""What the rule of the plan picks among the scores, where the default of the library is another one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.explore.plan import REPEATS

SEPARATE = ("shadow", "inserted")
"""Controls that need a run for each candidate: they cannot be the default."""

EQUAL = 0.02
"""Scores whose mean rho is so little below the best are equal: the lower regret decides."""


@dataclass(frozen=True)
class Mean:
    """A score, averaged over workloads."""

    score: str
    spearman: float
    regret: float


def means(workloads: Mapping[str, Mapping[str, Any]], names: Sequence[str] | None = None) -> list[Mean]:
    """Each score that needs no separate runs and was measured on all of these workloads, best rho first."""
    of_each = [{row["score"]: row for row in workloads[name]["scores"]} for name in names or workloads]
    found = [
        Mean(
            score,
            statistics.fmean(rows[score]["spearman"] for rows in of_each),
            statistics.fmean(rows[score]["regret"] for rows in of_each),
        )
        for score in of_each[0]
        if score not in SEPARATE and all(score in rows for rows in of_each)
    ]
    return sorted(found, key=lambda mean: -mean.spearman)


def winner(found: Sequence[Mean]) -> Mean:
    """The highest mean rho; of those equal to it, the lowest regret."""
    best = max(mean.spearman for mean in found)
    return min((mean for mean in found if mean.spearman >= best - EQUAL), key=lambda mean: mean.regret)


def decisive(workloads: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The workloads of which the plan lets something be said: their truth repeats."""
    return [name for name, found in workloads.items() if (found["repeats"] or 0.0) >= REPEATS]
