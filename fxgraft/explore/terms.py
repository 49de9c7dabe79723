"""The terms of a growth: when it is time, for how long each part goes on, and what it may cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxgraft.util import validate

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager

STEPS = "steps"
"""In the place of a gain: what further training steps of the same FLOPs would bring."""

When = str | float | Sequence[float] | Callable[["SeedManager"], bool]


@dataclass(frozen=True)
class Course:
    """For how long each part goes on, and what has to come of it.

    Attributes:
        explore: training steps of an exploration.
        blend, hold, fade: of what is blended in, held before it is judged, and blended out. ``hold`` below 1
            is a share of the steps before.
        window: the loss is flat where the mean of so many steps fell by less than ``flat`` (a share of it)
            against the mean of as many before. A ``manager.step()`` without a loss lets the evaluation tell.
        flat: that share.
        gain: what has to be contributed, as a share of the loss, to stay; or `STEPS`.
        patience: it ends after so many rounds in a row that brought nothing.
        measurements: how often what is held is measured until the median judges it: the last time at the
            end of ``hold``, the others evenly before, none in its first half.
    """

    explore: int = 100
    blend: int = 50
    hold: float = 50
    fade: int = 10
    window: int = 50
    flat: float = 0.02
    gain: float | str = 0.001
    patience: int = 1
    measurements: int = 1

    def __post_init__(self) -> None:
        for name in ("explore", "window", "fade", "patience", "measurements"):
            validate.integer(name, getattr(self, name), 1)
        validate.integer("blend", self.blend)
        if not isinstance(self.hold, float) or not 0 < self.hold < 1:
            validate.integer("hold", self.hold)
        validate.number("flat", self.flat)
        if self.gain != STEPS:
            validate.number("gain", self.gain)

    def hold_for(self, steps: int) -> int:
        """For how many steps what came after ``steps`` is held."""
        return int(self.hold) if self.hold >= 1 else math.ceil(self.hold * steps)

    def measure_after(self, hold: int, done: int) -> int:
        """After how many of ``hold`` steps the next measurement is due, when ``done`` were made."""
        missing = self.measurements - 1 - done
        return hold - math.floor(missing * hold / (2 * self.measurements))


@dataclass(frozen=True)
class Budget:
    """What the host may be in the end, as a factor of what it was at the beginning.

    Attributes:
        parameters: of the number of its parameters.
        flops: of the FLOPs of its forward pass; None: no limit.
    """

    parameters: float
    flops: float | None = None

    @classmethod
    def of(cls, given: float | Mapping[str, float]) -> Budget:
        """A number is a factor of parameters. Raises `ValueError`."""
        if not isinstance(given, Mapping):
            return cls(validate.number("budget", given, 1))
        if unknown := given.keys() - {"parameters", "flops"}:
            raise ValueError(f"budget: expected parameters and flops; got {sorted(unknown)[0]!r}")
        if not given:
            raise ValueError("budget: expected parameters or flops; got neither")
        parameters = given.get("parameters", float(2**31))
        flops = given.get("flops")
        return cls(
            validate.number("budget['parameters']", parameters, 1),
            None if flops is None else validate.number("budget['flops']", flops, 1),
        )


def moments(when: When, total: int | None) -> tuple[list[int] | None, Callable[[SeedManager], bool] | None]:
    """The steps at which it is time, or the function that says so; neither for ``"flat"``."""
    if callable(when):
        return None, when
    if isinstance(when, str):
        if when != "flat":
            raise ValueError(f'when: expected "flat", shares of the run, or a function; got {when!r}')
        return None, None
    shares = [when] if isinstance(when, (int, float)) else list(when)
    if not shares:
        raise ValueError("when: expected one share of the run at least; got none")
    if total is None:
        raise ValueError("when: a share of the run needs autogrow(..., total_steps=...)")
    validate.integer("total_steps", total, 1)
    return sorted(round(validate.number("when", share, 0, 1) * total) for share in shares), None
