"""The cost of a part as loss: what its FLOPs would have gained in further training without it.

The loss falls about as the logarithm of the steps. With ``slope`` the fall for each unit of it and ``done``
steps before the part came, a part that learnt for ``learnt`` steps, each with ``ratio`` times the FLOPs,
costs

    price = slope * log(1 + (ratio - 1) * learnt / done)

What it gives is still rising then, so that it need not have given as much: see `SHARE` of
`fxgraft.explore.growth_settings`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MOST = 64
"""Means that are kept: of one step each at first, then of 2, 4, 8, …"""


@dataclass
class Pace:
    """How fast the loss falls. What it remembers is bounded, and of JSON types.

    Attributes:
        means: of the losses of ``width`` steps each, since the beginning.
        width: see ``means``.
        total, count: of the steps since the last of them.
    """

    means: list[float] = field(default_factory=list)
    width: int = 1
    total: float = 0.0
    count: int = 0

    def add(self, loss: float) -> None:
        """One step more. A loss that is not finite says nothing; in a mean it would be there for good."""
        if not math.isfinite(loss):
            return
        self.total, self.count = self.total + loss, self.count + 1
        if self.count < self.width:
            return
        self.means.append(self.total / self.count)
        self.total, self.count = 0.0, 0
        if len(self.means) >= MOST:
            pairs = zip(self.means[::2], self.means[1::2], strict=True)
            self.means, self.width = [(a + b) / 2 for a, b in pairs], 2 * self.width

    def slope(self) -> float | None:
        """The fall of the loss for each unit of the logarithm of the steps, over the last half of them.

        Between the fifth around the middle and the last fifth. None before there are ten means.
        """
        n = len(self.means)
        if n < 10:
            return None
        wide = n // 5
        first = n // 2 - wide // 2
        middle, last = self.means[first : first + wide], self.means[-wide:]
        fall = sum(middle) / wide - sum(last) / wide
        return fall / math.log((n - wide / 2) / (first + wide / 2))


def price(slope: float, done: int, learnt: int, ratio: float) -> float:
    """How much lower the loss would be, had the FLOPs of the part paid for steps without it.

    Args:
        slope: see `Pace.slope`; one below 0 counts as 0.
        done: steps before it came.
        learnt: steps since.
        ratio: the FLOPs of a step with the part, over those without.
    """
    return max(slope, 0.0) * math.log1p(max(ratio - 1, 0.0) * learnt / max(done, 1))
