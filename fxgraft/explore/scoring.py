"""Scores: what the candidates of an exploration are ranked by. Higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fxgraft.explore.table import Row

Score = Callable[[Row], float | None]
"""Gives a number for a row, or None where it cannot."""

Ranking = Callable[[Sequence[Row]], list[float | None]]
"""Gives each of several rows its score."""


def contribution(row: Row) -> float | None:
    """The measured loss without the candidate minus the loss with it."""
    return row.contribution


def per_parameter(row: Row) -> float | None:
    """The contribution by parameter."""
    return _share(row.contribution, row.parameters)


def per_flop(row: Row) -> float | None:
    """The contribution by FLOP of a forward pass."""
    return _share(row.contribution, row.flops)


def expected(row: Row) -> float | None:
    """How fast the loss would fall with it, to first order, from its gradients before it learns."""
    return row.expected


def expected_times_parameters(row: Row) -> float | None:
    """That, times the number of parameters: what falls fast at first, and has room to go on."""
    if row.expected is None or row.parameters is None:
        return None
    return row.expected * row.parameters


def gradient(row: Row) -> float | None:
    """The norm of the gradient in the first step."""
    return row.gradient


def parameters(row: Row) -> float | None:
    """The number of its parameters: a baseline for comparisons."""
    return None if row.parameters is None else float(row.parameters)


def _share(gained: float | None, cost: int | None) -> float | None:
    if gained is None or cost is None:
        return None
    return gained / max(cost, 1)


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        "contribution": contribution,
        "per_parameter": per_parameter,
        "per_flop": per_flop,
        "expected": expected,
        "expected_times_parameters": expected_times_parameters,
        "gradient": gradient,
        "parameters": parameters,
    }
)
"""By name: each a function of a row."""

MIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "expected_and_parameters": ("expected", "parameters"),
        "expected_and_contribution": ("expected", "contribution"),
    }
)
"""By name: the mean of the ranks by several scores."""

DEFAULT = "expected_times_parameters"
"""Of those that need no run of their own, it orders best in ``benchmarks/results/explore.md``; fails where
the host has a bottleneck that small candidates lead around: first-order scores do not see that."""


def resolve(score: str | Score) -> Ranking:
    """What gives all rows their scores, by a name or by a function of a row. Raises `ValueError`."""
    if isinstance(score, str) and score in MIXES:
        parts = [SCORES[name] for name in MIXES[score]]
        return lambda rows: _mean([_ranks([part(row) for row in rows]) for part in parts])
    if isinstance(score, str) and score in SCORES:
        of_row = SCORES[score]
        return lambda rows: [of_row(row) for row in rows]
    if callable(score):
        return lambda rows: [score(row) for row in rows]
    names = ", ".join([*SCORES, *MIXES])
    raise ValueError(f"score: expected one of {names}, or a function of a row; got {score!r}")


def _ranks(scores: Sequence[float | None]) -> list[float]:
    """0 for the lowest, 1 for the highest; equal scores share the mean of their ranks."""
    values = [rank_of(score) for score in scores]
    most = max(len(values) - 1, 1)
    below = [sum(other < value for other in values) for value in values]
    equal = [sum(other == value for other in values) - 1 for value in values]
    return [(less + same / 2) / most for less, same in zip(below, equal, strict=True)]


def _mean(ranks: Sequence[Sequence[float]]) -> list[float | None]:
    return [sum(several) / len(several) for several in zip(*ranks, strict=True)]


def rank_of(score: float | None) -> float:
    """For sorting: what has no score, or none that is a number, comes last."""
    return -math.inf if score is None or math.isnan(score) else score
