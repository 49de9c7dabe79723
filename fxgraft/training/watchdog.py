"""Tells when a loss has diverged."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from fxgraft.errors import FxGraftError
from fxgraft.util import validate


class DivergedError(FxGraftError):
    """The loss diverged, and rolling back did not help."""


@dataclass(frozen=True)
class WatchdogConfig:
    """What counts as diverged, and how often to roll back.

    Attributes:
        window: how many healthy losses the running median is over.
        least: with fewer losses than this, only NaN and inf count.
        factor: a loss is far when it is above the median by this many times the median's magnitude.
        patience: this many far losses in a row are a divergence; one NaN or inf is.
        confirm: a checkpoint is good once so many healthy steps have followed it.
        attempts: how many rollbacks in a row, before `DivergedError`. All but the first also cull.

    Raises:
        ValueError: a number is invalid.
    """

    window: int = 50
    least: int = 10
    factor: float = 5.0
    patience: int = 3
    confirm: int = 5
    attempts: int = 3

    def __post_init__(self) -> None:
        for name in ("window", "least", "patience"):
            validate.integer(name, getattr(self, name), 1)
        for name in ("confirm", "attempts"):
            validate.integer(name, getattr(self, name))
        validate.number("factor", self.factor, least=0)


class Watchdog:
    """Watches the training loss against its running median."""

    def __init__(self, config: WatchdogConfig | None = None):
        self.config = config or WatchdogConfig()
        self._healthy: deque[float] = deque(maxlen=self.config.window)
        self._far = 0

    def judge(self, loss: float) -> str | None:
        """Take in one more loss; say why the run has diverged, or None while it has not.

        Only healthy losses move the median: a slow escape does not drag the yardstick along.
        """
        if not math.isfinite(loss):
            self._far = 0
            return f"the loss is {loss}"
        if len(self._healthy) >= self.config.least:
            median = statistics.median(self._healthy)
            if loss > median + self.config.factor * abs(median):
                return self._too_far(loss, median)
        self._far = 0
        self._healthy.append(loss)
        return None

    def _too_far(self, loss: float, median: float) -> str | None:
        self._far += 1
        if self._far < self.config.patience:
            return None
        self._far = 0
        return (
            f"the loss is {loss:.4g}, {self.config.patience} times in a row far above its median {median:.4g}"
        )
