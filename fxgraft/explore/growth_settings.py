"""Settings of an automatic growth: when to grow, how long each phase takes, and what it may cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxgraft.util import validate

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager

STEPS = "steps"
"""In the place of a gain: what further training steps of the same FLOPs would bring."""

SHARE = 0.25
"""Of that, what a part has to give after the time in which it is tried.

It was 0.5, chosen on one random seed of a small GPT: after a tenth of the steps a zeroed second block, which
is worth having in the end, gave 0.58 of its price, and a third, which is not, gave nothing. By a rule that
was written down before, on two other tasks, it became 0.25: see `SeedManager.autogrow`.
"""

FEWEST = 3
"""Measurements from which a standard error is estimated."""

When = str | float | Sequence[float] | Callable[["SeedManager"], bool]


@dataclass(frozen=True)
class GrowthSettings:
    """How long each phase takes, and what a part has to contribute to stay.

    Attributes:
        explore: training steps of an exploration.
        blend, hold, fade: of what is blended in, held before it is judged, and blended out. ``hold`` below 1
            is a share of the steps before.
        window: the loss is flat where the mean of so many steps fell by less than ``flat`` (a share of it)
            against the mean of as many before. A ``manager.step()`` without a loss lets the evaluation tell.
        flat: that share.
        gain: what has to be contributed, as a share of the loss, to stay; or `STEPS`.
        price: with `STEPS`, the share of that which a part has to give after the time in which it is tried;
            None: `SHARE`.
        patience: it ends after so many rounds in a row that brought nothing.
        measurements: how often what is held is measured until the median judges it: the last time at the
            end of ``hold``, the others evenly before, none in its first half.
        standard_errors: what the median has to be above the limit by, in standard errors of the
            measurements.
    """

    explore: int = 100
    blend: int = 50
    hold: float = 50
    fade: int = 10
    window: int = 50
    flat: float = 0.02
    gain: float | str = 0.001
    price: float | None = None
    patience: int = 1
    measurements: int = 1
    standard_errors: float = 0.0

    def __post_init__(self) -> None:
        validate.integer("steps", self.explore, 1)  # as it is called by who gives it
        for name in ("window", "fade", "patience", "measurements"):
            validate.integer(name, getattr(self, name), 1)
        validate.integer("blend", self.blend)
        if not isinstance(self.hold, float) or not 0 < self.hold < 1:
            validate.integer("hold", self.hold)
        validate.number("flat", self.flat)
        if self.gain != STEPS:
            validate.number("gain", self.gain)
        if self.price is not None:
            validate.number("price", self.price, 0)
            if self.gain != STEPS:
                raise ValueError(f'price: expected gain="{STEPS}" beside it; got gain={self.gain!r}')
        validate.number("standard_errors", self.standard_errors, 0)
        if self.standard_errors and self.measurements < FEWEST:
            raise ValueError(
                f"standard_errors: expected measurements={FEWEST} or more beside it, from which an error can "
                f"be estimated; got measurements={self.measurements}"
            )

    def margin(self, measured: Sequence[float]) -> float:
        """How far the contribution has to be above the limit: chance may have given so much.

        The one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984), for as many
        standard errors as were asked for.
        """
        if not self.standard_errors:
            return 0.0
        return self.standard_errors * statistics.stdev(measured) / math.sqrt(len(measured))

    def has_to_give(self, full: float) -> float:
        """Of a price, see `fxgraft.explore._price`, what is asked for."""
        return (SHARE if self.price is None else self.price) * full

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
        parameters: of the number of its parameters; None: no limit.
        flops: of the FLOPs of its forward pass; None: no limit.
        memory: of the bytes that training it takes, see `fxgraft.explore._memory`; None: no limit.
    """

    parameters: float | None = None
    flops: float | None = None
    memory: float | None = None

    @classmethod
    def of(cls, given: float | Mapping[str, float]) -> Budget:
        """A number is a factor of parameters. Raises `ValueError`."""
        if not isinstance(given, Mapping):
            return cls(validate.number("budget", given, 1))
        names = ("parameters", "flops", "memory")
        if unknown := given.keys() - set(names):
            raise ValueError(f"budget: expected {', '.join(names)}; got {sorted(map(str, unknown))[0]!r}")
        if not given:
            raise ValueError(f"budget: expected one of {', '.join(names)} at least; got none")
        return cls(
            **{name: validate.number(f"budget[{name!r}]", factor, 1) for name, factor in given.items()}
        )


def moments(when: When, total: int | None) -> tuple[list[int] | None, Callable[[SeedManager], bool] | None]:
    """The steps at which it is time, or the function that says so; neither for ``"flat"``."""
    if callable(when):
        return None, when
    if isinstance(when, str):
        if when != "flat":
            raise ValueError(f'when: expected "flat", shares of the run, or a function; got {when!r}')
        return None, None
    if not isinstance(when, (int, float, Iterable)):
        raise ValueError(f'when: expected "flat", shares of the run, or a function; got {when!r}')
    shares = [_share(share) for share in ([when] if isinstance(when, (int, float)) else when)]
    if not shares:
        raise ValueError("when: expected one share of the run at least; got none")
    if total is None:
        raise ValueError(
            f"when: a share of the run needs autogrow(..., total_steps=...); got {when!r} without it"
        )
    validate.integer("total_steps", total, 1)
    return sorted(round(share * total) for share in shares), None


def _share(given: object) -> float:
    """A share of the run. Raises `ValueError`; what is above 1 reads as a step."""
    if isinstance(given, (int, float)) and 1 < given < math.inf:
        raise ValueError(
            f"when: expected a share of the run, a number between 0 and 1; got {given!r}. For a step give "
            f"its share of all steps, or a function: when=lambda manager: manager.steps >= {given:g}"
        )
    return validate.number("when", given, 0, 1)
