"""Tells when a loss has diverged."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        self._attempts = 0
        self._last: int | None = None  # step of the last rollback

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

    def rolls_back(self, step: int) -> int:
        """Count a rollback. Returns the number of those in a row, with at most ``window`` steps between.

        Args:
            step: the training step in which the run diverged.
        """
        is_calm = self._last is None or step - self._last > self.config.window
        self._attempts = 1 if is_calm else self._attempts + 1
        self._last = step
        return self._attempts

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data."""
        return {
            "healthy": list(self._healthy),
            "far": self._far,
            "attempts": self._attempts,
            "last": self._last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: as it was read from the checkpoint.
        """
        self._healthy = deque(state["healthy"], maxlen=self.config.window)
        self._far, self._attempts, self._last = state["far"], state["attempts"], state["last"]

    def _too_far(self, loss: float, median: float) -> str | None:
        self._far += 1
        if self._far < self.config.patience:
            return None
        self._far = 0
        return (
            f"the loss is {loss:.4g}, {self.config.patience} times in a row far above its median {median:.4g}"
        )
