"""How a host is explored."""

from __future__ import annotations

from dataclasses import dataclass

MOST_FROZEN_STEPS = 50
"""More steps than these change the sums little."""


@dataclass(frozen=True)
class ExplorationSettings:
    """The settings of an exploration; as of `SeedManager.explore`.

    Attributes:
        steps: the length of the exploration, in training steps.
        keep: how many of the best candidates stay.
        at: the alpha to measure at.
        repeats: how often each evaluation is repeated.
    """

    steps: int
    keep: int
    at: float
    repeats: int

    @property
    def frozen_steps(self) -> int:
        """For how many steps candidates keep their initial parameters, and their gradients are summed up."""
        return min(max(self.steps // 2, 1), MOST_FROZEN_STEPS)
