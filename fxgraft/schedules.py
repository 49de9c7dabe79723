"""Alpha schedules: how far a blend has come after a share of its steps.

Each is monotone from 0 to 1 on [0, 1]; `Ramp` clamps it and lands exactly on the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

_PROBES = 64

Schedule = Callable[[float], float]


def linear(progress: float) -> float:
    """``p``."""
    return progress


def cosine(progress: float) -> float:
    """``(1 - cos(pi p)) / 2``: slow at both ends (half a period of SGDR's cosine, Loshchilov 2017)."""
    return (1 - math.cos(math.pi * progress)) / 2


def sigmoid(progress: float) -> float:
    """The logistic function of ``12 (p - 1/2)``, shifted and scaled to run from 0 to 1."""

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    low, high = logistic(-6), logistic(6)
    return (logistic(12 * (progress - 0.5)) - low) / (high - low)


SCHEDULES: Mapping[str, Schedule] = MappingProxyType({"linear": linear, "cosine": cosine, "sigmoid": sigmoid})


@dataclass(frozen=True)
class Ramp:
    """A blend under way: alpha goes from ``start`` to ``target`` in ``steps`` training steps."""

    start: float
    target: float
    steps: int
    schedule: Schedule

    def __post_init__(self) -> None:
        if not 0 <= self.target <= 1:
            raise ValueError(f"to: expected a share between 0 and 1; got {self.target!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: expected a positive whole number; got {self.steps!r}")
        shares = [self.schedule(i / _PROBES) for i in range(_PROBES + 1)]
        rising = all(a <= b for a, b in pairwise(shares))
        if not (all(math.isfinite(share) for share in shares) and rising):
            raise ValueError("schedule: expected a monotone function from [0, 1] to [0, 1]")

    def alpha(self, step: int) -> float:
        """Alpha after ``step`` steps; exactly ``target`` from the last one on."""
        if step >= self.steps:
            return self.target
        share = min(max(self.schedule(max(step, 0) / self.steps), 0.0), 1.0)
        return self.start + (self.target - self.start) * share


def resolve(schedule: str | Schedule) -> Schedule:
    """The schedule of that name, or the callable itself. Raises `ValueError` with the known names."""
    if callable(schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, or a callable; got {schedule!r}")
    return SCHEDULES[schedule]
