"""The plots, from the rows alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot

from benchmarks.record import Record
from benchmarks.rows import Row


def draw(record: Record, folder: Path) -> list[Path]:
    """One file for each plot that there are rows for."""
    drawn = []
    for name, plot in PLOTS.items():
        part = record.parts.get(name)
        if part is not None and part.rows:
            figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
            plot(axes, part.rows)
            drawn.append(folder / f"{name}.png")
            figure.savefig(drawn[-1], dpi=120)
            pyplot.close(figure)
    return drawn


def edits(axes: pyplot.Axes, rows: Sequence[Row]) -> None:
    """Milliseconds over the size of the host, both axes logarithmic."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        found = re.fullmatch(r"(.*) in ([\d,]+) nodes", row.what)
        if found:
            lines.setdefault(found[1], []).append((int(found[2].replace(",", "")), row.sides[0]))
    for what, points in lines.items():
        axes.loglog(*zip(*sorted(points), strict=True), marker="o", label=what)
    axes.set(xlabel="nodes of the host", ylabel="ms", title="What an edit costs")
    axes.grid(alpha=0.3)
    axes.legend()


def seeds(axes: pyplot.Axes, rows: Sequence[Row]) -> None:
    """The ratio of each row, with its range, beside its budget."""
    _bars(axes, rows, "a step, against the same network by hand")


def germination(axes: pyplot.Axes, rows: Sequence[Row]) -> None:
    """How long training stands still, in milliseconds, logarithmic."""
    kept = [row for row in rows if row.sides and row.against == "the recompile by hand"]
    names = [f"{row.workload}, {row.mode}: {row.what}" for row in kept]
    scale = [1e3 if row.sides_unit == "s" else 1.0 for row in kept]
    ours = [row.sides[0] * s for row, s in zip(kept, scale, strict=True)]
    theirs = [row.sides[1] * s for row, s in zip(kept, scale, strict=True)]
    axes.barh(names, theirs, color="lightgray", label="the recompile by hand")
    axes.barh(names, ours, height=0.4, label="fxgraft")
    axes.set(xscale="log", xlabel="ms", title="A germination under torch.compile")
    axes.tick_params(axis="y", labelsize=6)
    axes.legend()


def _bars(axes: pyplot.Axes, rows: Sequence[Row], title: str) -> None:
    names = [f"{row.workload}, {row.mode}: {row.what}" for row in rows]
    medians = [row.measured.median for row in rows]
    low = [row.measured.median - row.measured.low for row in rows]
    high = [row.measured.high - row.measured.median for row in rows]
    axes.errorbar(medians, names, xerr=(low, high), fmt="o", markersize=4)
    limits = [row.budget.limit if row.budget else float("nan") for row in rows]
    axes.scatter(limits, names, marker="|", color="tab:red", label="budget")
    axes.set(xlabel="ratio", title=title)
    axes.axvline(1.0, color="gray", linewidth=0.5)
    axes.tick_params(axis="y", labelsize=6)
    axes.legend()


PLOTS = {"edit": edits, "seeds": seeds, "germination": germination}
