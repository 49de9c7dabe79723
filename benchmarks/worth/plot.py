"""One plot: the test loss where complete schedules end, over FLOPs, each arm labelled at its end."""

from __future__ import annotations

from pathlib import Path

from matplotlib import pyplot

from benchmarks.worth.analysis import Arms, estimate
from benchmarks.worth.arms import GROW, SEVERAL

TITLES = {
    "gpt": "character GPT, sympy's sources",
    "cnn": "residual CNN, Fashion-MNIST",
    "thin": "the same, blocks of one convolution",
}


SHOWN = {
    "deepen-1-8": ("growth 1 → 8", "tab:orange"),
    "deepen-1-2": ("growth 1 → 2", "tab:blue"),
    GROW: ("growth, size not known", "tab:green"),
    SEVERAL: ("the same, several measurements", "tab:red"),
}


def draw(workloads: dict[str, tuple[Arms, Arms | None]], path: Path) -> None:
    """One panel for each workload; nothing without results."""
    if not workloads:
        return
    figure, panels = pyplot.subplots(
        1, len(workloads), figsize=(7.5 * len(workloads), 5), layout="constrained", squeeze=False
    )
    for axes, (name, (first, second)) in zip(panels[0], workloads.items(), strict=True):
        panel(axes, first, second)
        axes.set_title(TITLES.get(name, name))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def panel(axes: pyplot.Axes, first: Arms, second: Arms | None) -> None:
    """Fixed sizes in grey, growth in colour; an arm of both experiments is shown as the second has it."""
    source = {name: first for name, _ in first.curves}
    if second is not None:
        source |= {name: second for name, _ in second.curves}
    labels = []
    for name in sorted(source):
        arms = source[name]
        fixed, depth = arms.arms[name].fixed, arms.arms[name].depth
        if not (fixed or name in SHOWN):
            continue
        curves = [arms.curves[name, seed] for seed in arms.seeds(name)]
        points = list(zip(*(curve.ends for curve in curves), strict=True))
        flops = [estimate([end.flops for end in same]).mean / 1e12 for same in points]
        losses = [estimate([end.loss for end in same]) for same in points]
        text, colour = SHOWN.get(name, (f"{depth} block{'s' if depth > 1 else ''}", "0.45"))
        style = {"color": colour, "marker": "o", "markersize": 3, "linestyle": "-" if fixed else "--"}
        errors = [found.standard_error or 0.0 for found in losses]
        axes.errorbar(flops, [found.mean for found in losses], yerr=errors, capsize=2, linewidth=1, **style)
        labels.append((losses[-1].mean, flops[-1], text, colour))
    axes.set(xscale="log", xlabel="training TFLOPs, everything charged", ylabel="test loss, nats")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    _label(axes, labels)


def _label(axes: pyplot.Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Write (loss, FLOPs, text, colour) in a column at the right, each with a line to its end."""
    low, high = axes.get_ylim()
    furthest = max(flops for _, flops, _, _ in labels)
    axes.set_xlim(right=1.75 * furthest)
    at = float("-inf")
    for loss, flops, text, colour in sorted(labels):
        at = max(loss, at + 0.04 * (high - low))
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 2}
        place = {"xytext": (1.12 * furthest, at), "textcoords": "data", "va": "center", "fontsize": 8}
        axes.annotate(text, (flops, loss), color=colour, arrowprops=line, **place)
