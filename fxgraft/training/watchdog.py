"""Tells when a loss has diverged."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from fxgraft.errors import FxGraftError
from fxgraft.util import validate


class DivergedError(FxGraftError):
    """The loss diverged, and rollbacks did not help."""


@dataclass(frozen=True)
class WatchdogConfig:
    """When a run counts as diverged, and how often to roll back.

    Attributes:
        window: the number of accepted losses over which the running median is taken.
        least: with fewer losses than this, only NaN and infinite losses count.
        factor: a loss is an outlier if it is above the median by this many times the magnitude of the median.
        patience: so many outliers in a row are a divergence; so is one NaN or infinite loss.
        confirm: a checkpoint is used for a rollback only if so many accepted steps have followed it.
        attempts: the number of rollbacks in a row before `DivergedError`. All but the first also cull seeds.

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
    """Compares the training loss with its running median.

    Args:
        config: default None: `WatchdogConfig` with its defaults.
    """

    def __init__(self, config: WatchdogConfig | None = None):
        self.config = config or WatchdogConfig()
        self._healthy: deque[float] = deque(maxlen=self.config.window)
        self._far = 0

    def judge(self, loss: float) -> str | None:
        """Add one loss. Returns the reason why the run has diverged, or None.

        Outliers are not part of the median.

        Args:
            loss: that of one training step.
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
