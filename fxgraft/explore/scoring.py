"""Scores: what the candidates of an exploration are ranked by. Higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fxgraft.explore.table import Row

Score = Callable[[Row], float | None]
"""Gives a number for a row, or None where it cannot."""


def contribution(row: Row) -> float | None:
    """The measured loss without the candidate minus the loss with it."""
    return row.contribution


def per_parameter(row: Row) -> float | None:
    """The contribution by parameter."""
    return _share(row.contribution, row.parameters)


def per_flop(row: Row) -> float | None:
    """The contribution by FLOP of a forward pass."""
    return _share(row.contribution, row.flops)


def gradient(row: Row) -> float | None:
    """The norm of the gradient in the first step."""
    return row.gradient


def parameters(row: Row) -> float | None:
    """How many parameters it has: a control, which looks at nothing else."""
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
        "gradient": gradient,
        "parameters": parameters,
    }
)
DEFAULT = "contribution"


def resolve(score: str | Score) -> Score:
    """The score of that name, or a function of rows. Raises `ValueError`."""
    if isinstance(score, str) and score in SCORES:
        return SCORES[score]
    if callable(score):
        return score
    raise ValueError(f"score: expected one of {', '.join(SCORES)}, or a function of a row; got {score!r}")


def rank_of(score: float | None) -> float:
    """For sorting: what has no score, or none that is a number, comes last."""
    return -math.inf if score is None or math.isnan(score) else score
