"""Alpha schedules: how far a blend has come after a share of its steps.

Each is monotone from 0 to 1 on [0, 1]; `Ramp` clamps it and ends exactly at the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from fxgraft.util import validate

_PROBES = 64

Schedule = Callable[[float], float]


def linear(progress: float) -> float:
    """The identity: alpha changes at a constant rate.

    Args:
        progress: the share of the ramp that is done, 0 to 1.
    """
    return progress


def cosine(progress: float) -> float:
    """``(1 - cos(pi p)) / 2``: slow at both ends (half a period of SGDR's cosine, Loshchilov 2017).

    Args:
        progress: the share of the ramp that is done, ``p``, 0 to 1.
    """
    return (1 - math.cos(math.pi * progress)) / 2


def sigmoid(progress: float) -> float:
    """The logistic function of ``12 (p - 1/2)``, shifted and scaled to run from 0 to 1.

    Args:
        progress: the share of the ramp that is done, ``p``, 0 to 1.
    """

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    low, high = logistic(-6), logistic(6)
    return (logistic(12 * (progress - 0.5)) - low) / (high - low)


_schedules: dict[str, Schedule] = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid}
SCHEDULES: Mapping[str, Schedule] = MappingProxyType(_schedules)
"""Name -> schedule."""


def register(name: str, schedule: Schedule) -> None:
    """Give a schedule a name, so that checkpoints and commands can refer to it.

    Args:
        name: the name; it must be registered in the process that loads a checkpoint as well.
        schedule: a monotone function from 0 to 0 and from 1 to 1; values outside 0 to 1 are clamped.

    Raises:
        ValueError: the name is taken.
    """
    if name in _schedules:
        raise ValueError(f"there is a schedule {name!r} already")
    _schedules[name] = schedule


@dataclass(frozen=True)
class Ramp:
    """The course of a blend: alpha goes from ``starts`` to ``target`` in ``steps`` training steps.

    With more than one start (one for each channel) the channels move one after the other: the first one ends
    after half of the steps, when the last one begins.

    Attributes:
        starts: alpha at step 0: one number, or one for each channel.
        target: alpha at the end, in [0, 1].
        steps: the number of steps; if this and ``warmup`` are 0, alpha is at the target at once.
        schedule: a function from the share of the steps to the share of the change, both in [0, 1].
        warmup: the number of steps before those, in which alpha stays at ``starts``. Default 0.

    Raises:
        ValueError: a number is invalid, or the schedule is not monotone, or has values that are not finite.
    """

    starts: tuple[float, ...]
    target: float
    steps: int
    schedule: Schedule
    warmup: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", validate.number("to", self.target, 0, 1))
        object.__setattr__(self, "steps", validate.integer("steps", self.steps))
        object.__setattr__(self, "warmup", validate.integer("warmup", self.warmup))
        shares = [self.schedule(i / _PROBES) for i in range(_PROBES + 1)]
        odd = [share for share in shares if not isinstance(share, (int, float)) or not math.isfinite(share)]
        if odd or not all(a <= b for a, b in pairwise(shares)):
            some = [shares[0], shares[_PROBES // 2], shares[-1]]
            got = repr(odd[0]) if odd else ", …, ".join(f"{share:.3g}" for share in some)
            raise ValueError(f"schedule: expected a monotone function from [0, 1] to [0, 1]; got {got}")

    @property
    def length(self) -> int:
        """All steps, those of the warm-up included."""
        return self.warmup + self.steps

    def alphas(self, step: int) -> tuple[float, ...]:
        """Alpha (of each channel) after some steps; exactly ``target`` from the last one on.

        Args:
            step: the number of steps made, from 0.
        """
        if step >= self.length:
            return (self.target,) * len(self.starts)
        if step <= self.warmup:
            return self.starts
        progress = (step - self.warmup) / self.steps
        if len(self.starts) == 1:
            return (self._alpha(self.starts[0], progress),)
        late = [i / (len(self.starts) - 1) for i in range(len(self.starts))]
        return tuple(self._alpha(s, 2 * progress - d) for s, d in zip(self.starts, late, strict=True))

    def _alpha(self, start: float, progress: float) -> float:
        target = self.target
        share = _clamped(self.schedule(_clamped(progress, 0.0, 1.0)), 0.0, 1.0)
        # Rounding must not carry alpha past its target.
        alpha = target if share == 1 else start + (target - start) * share
        return _clamped(alpha, start, target) if start <= target else _clamped(alpha, target, start)


def _clamped(value: float, low: float, high: float) -> float:
    return low if value < low else high if value > high else value


def resolve(schedule: str | Schedule) -> Schedule:
    """The schedule of that name, or the callable itself. Raises `ValueError` with the known names.

    Args:
        schedule: a registered name, or a callable.
    """
    if callable(schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, or a callable; got {schedule!r}")
    return SCHEDULES[schedule]
