"""The lane of a seed: its stages as a strip, alpha above it, the ratio of gradients, what it contributed.

a  mlp at layer1.relu, residual, 76 parameters
____◆+0.012____      ◆ measured: the loss without the seed minus with it
______/....               / alpha, 0 to 1     .... gradient norm of the seed / of the host (right axis)
████▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓        in the colours of the stages
"""

from __future__ import annotations

import math
from html import escape

import plotly.graph_objects as go

from fxgraft.report._points import Points, thin
from fxgraft.report._traces import line, log_axis
from fxgraft.report.run import Lane
from fxgraft.seeds.stage import STAGE_COLOURS, Stage

MOST_POINTS = 1000
"""How many points of a line are drawn; a lowest and a highest one never gets lost."""

MOST_NUMBERS = 6
"""How many contributions are written out; more of them are shown on hovering only."""

SOFT = "#7d8590"


def add_lane(figure: go.Figure, row: int, lane: Lane, end: int) -> None:
    """Draw the lane into a row that has a secondary axis; the run ends at step ``end``."""
    for began, until, stage in lane.spans(end):
        colour = STAGE_COLOURS[stage]
        alphas = _alphas(lane, began, until, stage)
        hover = [f"{stage.name.lower()}, step {at}, alpha {alpha:.3g}" for at, alpha in alphas]
        line(figure, row, alphas, "alpha", colour, width=2, hover=hover, fill="tozeroy", showlegend=False)
        box = {"x0": began, "x1": until, "y0": -0.3, "y1": -0.08}
        figure.add_shape(type="rect", fillcolor=colour, line={"width": 0}, row=row, col=1, **box)
    ratios = [(at, value) for at, value in lane.ratios if math.isfinite(value) and value > 0]
    ratios = thin(ratios, MOST_POINTS)
    hover = [f"gradient of the seed / of the host: {value:.3g}, step {at}" for at, value in ratios]
    line(figure, row, ratios, "ratio", SOFT, dash="dot", hover=hover, showlegend=False, secondary_y=True)
    _add_contributions(figure, row, lane.contributions, end)
    figure.add_annotation(
        text=f"<b>{escape(lane.name)}</b>  {escape(describe(lane))}",
        x=0,
        y=1.06,
        xref="x domain",
        yref="y domain",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        row=row,
        col=1,
    )
    plain = {"showgrid": False, "zeroline": False, "row": row}
    figure.update_yaxes(range=[-0.32, 1.08], tickvals=[0, 1], secondary_y=False, **plain)
    small = {"size": 10, "color": SOFT}
    figure.update_yaxes(visible=bool(ratios), tickfont=small, secondary_y=True, **plain)
    if ratios:
        figure.update_yaxes(secondary_y=True, row=row, **log_axis([value for _, value in ratios], most=2))


def describe(lane: Lane) -> str:
    """Blueprint, place, mode and size of a seed, in a line."""
    where = f"{lane.source} → {lane.slot}" if lane.source else lane.slot
    size = "" if lane.parameters is None else f", {lane.parameters:,} parameters"
    return f"{lane.blueprint} at {where}, {lane.mode}{size}"


def _alphas(lane: Lane, began: int, until: int, stage: Stage) -> Points:
    """Alpha over one stage, to its end."""
    inside = [point for point in lane.alphas if began <= point[0] <= until] or [(began, lane.alpha)]
    if stage is Stage.FOSSILIZED:
        inside = inside[:1]  # a constant from then on
    return [*thin(inside, MOST_POINTS), (until, inside[-1][1])]


def _add_contributions(figure: go.Figure, row: int, contributions: Points, end: int) -> None:
    finite = [(at, value) for at, value in contributions if math.isfinite(value)]
    good, bad = STAGE_COLOURS[Stage.FOSSILIZED], STAGE_COLOURS[Stage.CULLED]
    figure.add_scatter(
        x=[at for at, _ in finite],
        y=[0.5] * len(finite),
        mode="markers+text" if len(finite) <= MOST_NUMBERS else "markers",
        text=[f"{value:+.3g}" for _, value in finite],
        # Towards the middle of the run: beyond its end there is no room.
        textposition=["middle right" if at < end / 2 else "middle left" for at, _ in finite],
        marker={"symbol": "diamond", "size": 9, "color": [good if v > 0 else bad for _, v in finite]},
        hovertext=[f"contribution {value:+.4g}, measured at step {at}" for at, value in finite],
        hoverinfo="text",
        showlegend=False,
        row=row,
        col=1,
    )
