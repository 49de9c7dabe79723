"""``loss.png``: the held-out loss over FLOPs, each arm labelled at its end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fxgraft.demo._results import Records
from fxgraft.demo._training import ARMS, GROWN, Record
from fxgraft.util.text import pluralize

# Okabe and Ito's colours, which stay apart for colour-blind readers; growth has the strongest.
COLOURS = dict(zip(ARMS, ("#999999", "#E69F00", "#CC79A7", "#0072B2", "#56B4E9"), strict=True))
LEAST_GAP = 0.045
"""Between two labels, as a share of the height."""


def draw(records: Records, path: Path) -> None:
    """Draw all arms: the mean of the random seeds, and a band from the lowest to the highest."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    ends = []
    for arm in ARMS:
        points = list(zip(*(record.curve for record in records[arm]), strict=False))
        flops = [statistics.fmean(spent for spent, _ in same) / 1e9 for same in points]
        losses = [[loss for _, loss in same] for same in points]
        mean = [statistics.fmean(same) for same in losses]
        style: dict[str, Any] = {"color": COLOURS[arm], "linewidth": 2.5 if arm in GROWN else 1.5}
        axes.plot(flops, mean, zorder=3 if arm in GROWN else 2, **style)
        axes.fill_between(
            flops, [*map(min, losses)], [*map(max, losses)], color=COLOURS[arm], alpha=0.2, lw=0
        )
        ends.append((mean[-1], flops[-1], f"{arm}  {mean[-1]:.3f}", COLOURS[arm]))
    for arm in GROWN:
        _mark_growth(axes, records[arm], COLOURS[arm])
    # From where the curves begin to differ: before, all fall alike.
    late = [
        loss for arm in ARMS for record in records[arm] for _, loss in record.curve[len(record.curve) // 6 :]
    ]
    low, high = min(late), max(late)
    axes.set_ylim(low - 0.05 * (high - low), high)
    axes.set_xlim(0, 1.02 * max(at for _, at, _, _ in ends))
    _label(axes, ends)
    axes.set(
        xlabel="GFLOPs, everything charged (triangles: what grew was kept)",
        ylabel="held-out loss, nats for each character",
    )
    runs = pluralize(len(records[GROWN[0]]), "random seed")
    axes.set_title(
        f"A character GPT on sympy's sources: growth against fixed sizes ({runs})",
        loc="left",
        fontsize=11,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _mark_growth(axes: Axes, runs: Sequence[Record], colour: str) -> None:
    """A triangle on the axis wherever a run has kept something."""
    kept = [
        entry["step"] / run.steps * run.curve[-1][0] / 1e9
        for run in runs
        for entry in run.history
        if entry["what"] in ("kept", "widened") and run.curve
    ]
    if kept:
        style: dict[str, Any] = {"color": colour, "clip_on": False, "linestyle": "", "markersize": 7}
        axes.plot(kept, [0.0] * len(kept), marker="^", transform=axes.get_xaxis_transform(), **style)


def _label(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (loss, FLOPs, text, colour) right of each end; moved up where it would lie on the one below."""
    low, high = axes.get_ylim()
    at = float("-inf")
    for loss, flops, text, colour in sorted(ends):
        at = max(loss, at + LEAST_GAP * (high - low))
        axes.annotate(
            text,
            (flops, at),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )
