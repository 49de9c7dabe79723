"""Scores: what the candidates of an exploration are ranked by. Higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType

from torch import Tensor

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


def _layers_first(rows: Sequence[Row]) -> list[float | None]:
    """Layers that grow and help come first, by their contribution; then the rest, as by default."""
    rest = [expected_times_parameters(row) for row in rows]
    above = max((score for score in map(rank_of, rest) if math.isfinite(score)), default=0.0)
    return [
        above + (row.contribution or 0.0) if row.helps and (row.widens or row.deepens) else score
        for row, score in zip(rows, rest, strict=True)
    ]


LAYERS_FIRST = "layers_first"
"""The default of `SeedManager.autogrow`: the best of those in ``benchmarks/results/growing.md``."""

DEFAULT = "expected_times_parameters"
"""Of explorations. Not the one that the rule of ``benchmarks/explore/plan.py`` picks: that is
``expected_and_parameters``, with a mean rho of 0.67 and a regret of 0.47 over four workloads, against 0.65
and 0.35. It is the default because its first choice loses least: of the scores in
``benchmarks/results/explore.md`` that need no run of their own, and were measured on all workloads, it has
the lowest regret. It fails where the host has a bottleneck that small candidates lead around: first-order
scores do not see that."""


def resolve(score: str | Score) -> Ranking:
    """What gives all rows their scores, by a name or by a function of a row. Raises `ValueError`."""
    if isinstance(score, str) and score in MIXES:
        parts = [SCORES[name] for name in MIXES[score]]
        return lambda rows: _mean([_ranks([part(row) for row in rows]) for part in parts])
    if isinstance(score, str) and score in SCORES:
        of_row = SCORES[score]
        return lambda rows: [of_row(row) for row in rows]
    if score == LAYERS_FIRST:
        return _layers_first
    if callable(score):
        return lambda rows: [_number(score(row), row) for row in rows]
    names = ", ".join([*SCORES, *MIXES, LAYERS_FIRST])
    raise ValueError(f"score: expected one of {names}, or a function of a row; got {score!r}")


def _number(found: object, row: Row) -> float | None:
    """What a function of a row gave. Raises `TypeError` where it is no number."""
    if found is None or isinstance(found, Real):
        return None if found is None else float(found)
    if isinstance(found, Tensor) and found.numel() == 1 and not found.is_complex():
        return float(found)
    raise TypeError(f"score: expected a number, or None for none; got {found!r} for {row.slot!r}")


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
