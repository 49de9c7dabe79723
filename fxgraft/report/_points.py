"""Lines of points over training steps, and what makes them fit to be drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

Points = list[tuple[int, float]]
"""(training step, value), in the order of steps. A value may be NaN or infinite."""


def upto(points: Points, step: int) -> Points:
    """Those of ``step`` and before."""
    return [point for point in points if point[0] <= step]


def thin(points: Sequence[tuple[int, float]], most: int) -> Points:
    """At most about ``most`` points that look the same: the lowest and highest of each stretch stay."""
    if len(points) <= most:
        return list(points)
    width = 2 * len(points) / most
    kept: list[int] = [0, len(points) - 1]
    for stretch in range(math.ceil(len(points) / width)):
        inside = range(round(stretch * width), min(round((stretch + 1) * width), len(points)))
        kept += {min(inside, key=lambda i: points[i][1]), max(inside, key=lambda i: points[i][1])}
        kept += [i for i in inside if not math.isfinite(points[i][1])][:1]  # a gap stays a gap
    return [points[i] for i in sorted(set(kept))]


def smooth(points: Points, weight: float = 0.9) -> Points:
    """The exponential moving average, corrected for its beginning (as in Adam, arXiv:1412.6980)."""
    mean, made = 0.0, []
    for count, (step, value) in enumerate(points, 1):
        mean = weight * mean + (1 - weight) * value
        made.append((step, mean / (1 - weight**count)))
    return made
