"""Lines and marks on a plotly figure, with the defaults of our charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from fxgraft.report.points import Points


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
