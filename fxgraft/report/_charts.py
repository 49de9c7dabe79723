r"""The chart of a run over its training steps: the loss, the time of each step, and a lane for each seed.

    loss      ~~~\__o___o__     o a seed enters a stage
    ms/step   ____|_____*___     * something was compiled
    seed a    ▁▁▁▁▂▃▅▇████
    seed b         ▁▁▁▂▂

Drawn by plotly, which comes with the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fxgraft.report._lanes import SOFT, add_lane
from fxgraft.report._points import Points, smooth, thin
from fxgraft.report._traces import line, log_axis, marks
from fxgraft.report.run import Lane, Run
from fxgraft.seeds.stage import STAGE_COLOURS, Stage

MOST_POINTS = 4000
"""How many points of a line are drawn; a lowest and a highest one never gets lost."""

MOST_LANES, MOST_TRIED = 40, 8
"""How many seeds have a lane, and how many of those that were only tried: see `with_lane`."""

LOSS_HEIGHT, TIME_HEIGHT, LANE_HEIGHT, GAP = 300, 110, 72, 36
"""Pixels."""

LOSS, HELD_OUT, ALARM, COMPILED = "#4c78a8", "#7d8590", "#d1242f", "#c2459a"
"""What is no stage has none of their colours. (Grey is that of DORMANT, of which nothing is drawn.)"""


def chart(run: Run) -> go.Figure:
    """The figure, without colours for text and background: the page has a light and a dark set of them."""
    lanes = with_lane(run)
    heights = [LOSS_HEIGHT, TIME_HEIGHT, *[LANE_HEIGHT] * len(lanes)]
    total = sum(heights) + GAP * (len(heights) - 1)
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=GAP / total,
        specs=[[{}], [{}], *[[{"secondary_y": True}] for _ in lanes]],
    )
    _add_loss(figure, run, lanes)
    _add_times(figure, run)
    for row, lane in enumerate(lanes, 3):
        add_lane(figure, row, lane, run.step)
    figure.update_xaxes(range=[0, max(run.step, 1)], zeroline=False)
    figure.update_xaxes(title_text="training step", showticklabels=True, row=len(heights))
    figure.update_layout(
        height=total + 110,
        margin={"l": 84, "r": 60, "t": 50, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": SOFT},
        template="none",
    )
    return figure


def with_lane(run: Run) -> list[Lane]:
    """The seeds that have a lane in the chart: the latest, as they came. The table of the page has them all.

    An exploration tries dozens. Of those that were culled without having been blended in, few are drawn.
    """
    tried = [lane for lane in run.lanes.values() if _was_only_tried(lane)]
    others = [lane for lane in run.lanes.values() if not _was_only_tried(lane)][-MOST_LANES:]
    room = min(MOST_TRIED, MOST_LANES - len(others))
    drawn = {lane.name for lane in (*others, *(tried[-room:] if room else ()))}
    return [lane for lane in run.lanes.values() if lane.name in drawn]


def _was_only_tried(lane: Lane) -> bool:
    return lane.stage is Stage.CULLED and all(stage is not Stage.BLENDING for _, stage in lane.stages)


def _add_loss(figure: go.Figure, run: Run, lanes: Sequence[Lane]) -> None:
    finite = [point for point in run.losses if math.isfinite(point[1])]
    smoothed = smooth(finite) if len(finite) > 200 else finite
    if smoothed is not finite:
        line(figure, 1, thin(finite, MOST_POINTS), "loss of a step", LOSS, opacity=0.4)
    name = "loss" if smoothed is finite else "loss, moving average"
    line(figure, 1, thin(smoothed, MOST_POINTS), name, LOSS, width=2)
    _add_stages(figure, lanes, dict(smoothed))
    measured = [point for point in run.held_out if math.isfinite(point[1])]
    if measured:
        _add_held_out(figure, thin(measured, MOST_POINTS))
    lowest = min((value for _, value in finite), default=0.0)
    highest = max((value for _, value in finite), default=0.0)
    lost = [step for step, value in run.losses if not math.isfinite(value)][:MOST_POINTS]
    marks(figure, 1, lost, "loss NaN or inf", "x", ALARM, lowest)
    violations = [row["step"] for row in run.violations][:MOST_POINTS]
    marks(figure, 1, violations, "isolation violated", "triangle-down", ALARM, lowest)
    figure.update_yaxes(title_text="loss", type="linear", zeroline=False, row=1)
    if 0 < 30 * lowest < highest:
        figure.update_yaxes(row=1, **log_axis([lowest, highest]))


def _add_held_out(figure: go.Figure, measured: Points) -> None:
    figure.add_scatter(
        x=[step for step, _ in measured],
        y=[loss for _, loss in measured],
        mode="markers",
        name="held-out loss",
        marker={"symbol": "diamond-open", "size": 9, "color": HELD_OUT, "line": {"width": 2}},
        hovertext=[f"held-out loss {loss:.4g}, measured at step {step}" for step, loss in measured],
        hoverinfo="text",
        row=1,
        col=1,
    )


def _add_stages(figure: go.Figure, lanes: Sequence[Lane], level: dict[int, float]) -> None:
    """A mark on the loss wherever a seed entered a stage; the legend is the key of the colours."""
    for stage in Stage:
        entered = [(lane.name, step) for lane in lanes for step, entry in lane.stages if entry is stage]
        if not entered:
            continue
        figure.add_scatter(
            x=[step for _, step in entered],
            # What is done after a step stands before the next one.
            y=[level.get(step, level.get(step + 1)) for _, step in entered],
            mode="markers",
            name=stage.name.lower(),
            marker={"color": STAGE_COLOURS[stage], "size": 10, "line": {"color": "white", "width": 1}},
            hovertext=[f"{escape(seed)}: {stage.name.lower()}, step {step}" for seed, step in entered],
            hoverinfo="text",
            row=1,
            col=1,
        )


def _add_times(figure: go.Figure, run: Run) -> None:
    line(figure, 2, thin(run.times, MOST_POINTS), "time of a step", SOFT, showlegend=False)
    steps = [row["step"] for row in run.compiles]
    marks(figure, 2, steps, "compiled", "star", COMPILED, run.median_ms)
    positive = all(ms > 0 for _, ms in run.times)
    figure.update_yaxes(title_text="ms per step", title_standoff=6, automargin=True, type="linear", row=2)
    if run.times and positive:
        figure.update_yaxes(row=2, **log_axis([ms for _, ms in run.times]))
