"""``curves.png``: loss and accuracy of the arms over the training, alpha and the lifecycle below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fxgraft.demo.controller import Blend, Cull, Fossilize, Germinate
from fxgraft.demo.records import Record
from fxgraft.demo.summary import Records

# Okabe and Ito's colours, which stay apart for colour-blind readers.
STYLES = {
    "baseline": ("#7f7f7f", "-", "baseline (without fxgraft; seeds disabled is the same)"),
    "scratch": ("#E69F00", "--", "grown architecture from scratch"),
    "no_isolation": ("#CC79A7", "-.", "grown without isolation"),
    "grown": ("#0072B2", "-", "grown"),
}
EVENTS = {
    Germinate: ("^", "#009E73", "germinate"),
    Blend: ("o", "#56B4E9", "blend"),
    Fossilize: ("*", "#D55E00", "fossilize"),
    Cull: ("X", "#000000", "cull"),
}


def draw(records: Records, path: Path) -> None:
    """Draw all arms, with the events of the grown runs, to ``path``."""
    figure = Figure(figsize=(11, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, alpha = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.6))
    for arm in STYLES:
        _band(loss, records[arm], arm, 1)
        _band(accuracy, records[arm], arm, 2)
    runs = len(records["grown"])
    _mark_events(loss, records["grown"])
    loss.set_yscale("log")
    loss.set_ylabel("held-out loss")
    loss.set_title(
        f"Growing a small CNN on scikit-learn's digits, {runs} random seeds (line: mean, band: ± spread)",
        loc="left",
    )
    accuracy.set_ylabel("held-out accuracy")
    _from_the_interesting_part(accuracy, records)
    _alphas(alpha, records["grown"])
    for axes in (loss, accuracy, alpha):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    loss.legend(loc="upper right", frameon=False)
    marks = [
        Line2D([], [], marker=marker, color=colour, linestyle="", markersize=9, label=label)
        for marker, colour, label in EVENTS.values()
    ]
    title = "events of the grown runs, each at the loss of its run"
    accuracy.legend(handles=marks, loc="lower right", frameon=False, ncols=4, title=title)
    figure.savefig(path, dpi=130)


def _band(axes: Any, runs: Sequence[Record], arm: str, column: int) -> None:
    colour, line, label = STYLES[arm]
    steps = np.array([point[0] for point in runs[0].curve])
    values = np.array([[point[column] for point in record.curve] for record in runs])
    mean = values.mean(0)
    axes.plot(steps, mean, color=colour, linestyle=line, label=label, linewidth=2, zorder=3)
    if len(runs) > 1:
        spread = values.std(0, ddof=1)
        low = np.maximum(mean - spread, values.min(0)) if column == 1 else mean - spread
        axes.fill_between(steps, low, mean + spread, color=colour, alpha=0.15, linewidth=0)


def _mark_events(axes: Any, runs: Sequence[Record]) -> None:
    """Each event where the loss of its own run was."""
    for record in runs:
        steps, losses = [p[0] for p in record.curve], [p[1] for p in record.curve]
        for step, action in record.script:
            marker, colour, _ = EVENTS[type(action)]
            height = float(np.interp(step, steps, losses))
            axes.plot(
                step, height, marker=marker, color=colour, markersize=9, markeredgecolor="white", zorder=4
            )


def _from_the_interesting_part(axes: Any, records: Records) -> None:
    """The first steps, from chance upwards, would flatten all the rest."""
    shown = [acc for arm in STYLES for r in records[arm] for step, _, acc in r.curve[len(r.curve) // 6 :]]
    axes.set_ylim(max(0.0, min(shown) - 0.02), min(1.0, max(shown) + 0.02))


def _alphas(axes: Any, runs: Sequence[Record]) -> None:
    """A lane for each run: alpha of its seeds from germination to the end, events on the line."""
    for lane, record in enumerate(runs):
        base = len(runs) - 1 - lane
        axes.axhline(base, color="#cccccc", linewidth=0.6)
        end = len(record.losses)
        ends = {a.seed: (step, type(a)) for step, a in record.script if isinstance(a, Cull | Fossilize)}
        for seed, points in record.alphas.items():
            steps, alphas = [p[0] for p in points], [p[1] for p in points]
            stop, how = ends.get(seed, (end, Cull))
            if how is Fossilize:
                steps, alphas = [*steps, stop, end], [*alphas, 1.0, 1.0]
            heights = base + 0.8 * np.array(alphas)
            axes.fill_between(steps, base, heights, color="#0072B2", alpha=0.18, linewidth=0)
            axes.plot(steps, heights, color="#0072B2", linewidth=1.5)
        heights_at = {seed: dict(points) for seed, points in record.alphas.items()}
        for step, action in record.script:
            marker, colour, _ = EVENTS[type(action)]
            alpha = 1.0 if isinstance(action, Fossilize) else heights_at.get(action.seed, {}).get(step, 0.0)
            axes.plot(step, base + 0.8 * alpha, marker=marker, color=colour, markersize=7, zorder=4)
    axes.set_yticks([len(runs) - 1 - lane + 0.4 for lane in range(len(runs))])
    axes.set_yticklabels([f"run {record.random_seed}" for record in runs])
    axes.set_ylabel("alpha (0 to 1)")
    axes.set_xlabel("training step")
