"""Lines and marks on a plotly figure, with the defaults of our charts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from fxgraft.report._points import Points


def line(
    figure: go.Figure,
    row: int,
    points: Points,
    name: str,
    color: str,
    *,
    width: float = 1,
    dash: str = "solid",
    hover: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """A line through ``points`` in a row of the figure; options are those of plotly's scatter."""
    figure.add_scatter(
        x=[step for step, _ in points],
        y=[value for _, value in points],
        mode="lines",
        name=name,
        line={"color": color, "width": width, "dash": dash},
        hovertext=hover,
        hoverinfo="text" if hover else "x+y+name",
        row=row,
        col=1,
        **options,
    )


def marks(
    figure: go.Figure,
    row: int,
    steps: Iterable[int],
    name: str,
    symbol: str,
    color: str,
    height: float | None,
) -> None:
    """A mark at each of ``steps``, all at one height."""
    at = sorted(set(steps))
    if not at:
        return
    figure.add_scatter(
        x=at,
        y=[height] * len(at),
        mode="markers",
        name=name,
        marker={"symbol": symbol, "size": 9, "color": color},
        hovertext=[f"{name}, step {step}" for step in at],
        hoverinfo="text",
        row=row,
        col=1,
    )


def log_axis(values: Sequence[float], most: int = 4) -> dict[str, Any]:
    """The settings of a logarithmic axis that has ticks whatever the values are, and not too many.

    Args:
        values: what is drawn; positive, one at least.
        most: how many ticks.

    Returns:
        Settings of ``figure.update_yaxes``: powers of ten around the values, or 1, 2 and 5 times them.
    """
    low, high = math.log10(min(values)), math.log10(max(values))
    bottom, top = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    powers = range(bottom, top + 1)
    if len(powers) <= 2 < most:  # one decade
        ticks = [digit * 10.0**bottom for digit in (1, 2, 5, 10)]
    else:
        ticks = [10.0**power for power in powers[:: max(1, math.ceil((len(powers) - 1) / (most - 1)))]]
    text = [f"{tick:g}" for tick in ticks]
    return {"type": "log", "range": [bottom, top], "tickvals": ticks, "ticktext": text, "tickmode": "array"}
