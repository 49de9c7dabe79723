"""The test loss where complete schedules end, over FLOPs, each arm labelled at its end.

``worth.png`` has a panel for each workload of the first three experiments. ``worth_gpt.png``,
``worth_brown.png`` and ``worth_long.png`` have one each, which needs no other explanation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib import pyplot

from benchmarks.worth.analysis import Arms, estimate
from benchmarks.worth.arms import COPIES, GROW, GROW_COPIES, PRIMARY, SEVERAL, SOONER
from benchmarks.worth.protocols import LARGEST

TITLES = {
    "gpt": "character GPT, sympy's sources",
    "cnn": "residual CNN, Fashion-MNIST",
    "thin": "the same, blocks of one convolution",
    "brown": "character GPT, English text",
    "long": "character GPT, nine times the FLOPs",
}


SHOWN = {
    "deepen-1-8": ("growth 1 → 8", "tab:orange"),
    "deepen-1-2": ("growth 1 → 2", "tab:blue"),
    GROW: ("growth, size not known", "tab:green"),
    SEVERAL: ("the same, several measurements", "tab:red"),
}
FRONT = {
    PRIMARY: ("grown from 1 to 8 blocks in one act", "tab:orange"),
    GROW: ("grows by itself, size not known", "tab:green"),
    GROW_COPIES: ("grows by itself, size not known", "tab:green"),
    SOONER: ("the same, blocks have to give less", "tab:purple"),
    COPIES: ("grown early, size known", "tab:blue"),
}
FRONT_TITLES = {
    "gpt": "A small GPT",
    "brown": "A small GPT, English text",
    "long": "A small GPT, nine times as long",
}
FRONT_TITLE = "{}: which loss for which cost? (lower and further left is better)"

OTHER = "another rate"
"""How a fixed size is shown that was trained with another learning rate afterwards."""

Triples = Mapping[str, tuple[Arms, Arms | None, Arms | None]]


def draw(workloads: Triples, folder: Path) -> None:
    """Both pictures; none without results."""
    if not workloads:
        return
    figure, panels = pyplot.subplots(
        1, len(workloads), figsize=(7.5 * len(workloads), 5), layout="constrained", squeeze=False
    )
    for axes, (name, (first, second, extra)) in zip(panels[0], workloads.items(), strict=True):
        panel(axes, first, second, extra)
        axes.set_title(TITLES.get(name, name))
    figure.savefig(folder / "worth.png", dpi=110)
    pyplot.close(figure)
    if "gpt" in workloads:
        first, second, _ = workloads["gpt"]
        draw_front("gpt", first, second, folder)


def draw_front(name: str, first: Arms, second: Arms | None, folder: Path, extra: Arms | None = None) -> None:
    """The picture of one workload that needs no other explanation; none without the large network."""
    if not first.seeds(LARGEST):
        return
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    front(axes, first, second, extra)
    axes.set_title(FRONT_TITLE.format(FRONT_TITLES[name]), fontsize=12)
    figure.savefig(folder / f"worth_{name}.png", dpi=100)
    pyplot.close(figure)


def front(axes: pyplot.Axes, first: Arms, second: Arms | None, extra: Arms | None = None) -> None:
    """Its panel; costs are shares of those of 8 blocks."""
    whole = first.curves[LARGEST, first.seeds(LARGEST)[0]].at_share(1.0).flops
    lines(
        axes,
        sources(first, second, extra),
        FRONT,
        whole / 100,
        size=10,
        factor=2.3,
        fixed_label=" from the start",
        above=0.35,
    )
    axes.set_xlabel("training cost, % of the FLOPs of 8 blocks from scratch, everything charged", fontsize=11)
    axes.set_ylabel("test loss, nats per character", fontsize=11)
    ticks = [30, 40, 50, 60, 80, 100]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def sources(first: Arms, second: Arms | None, extra: Arms | None = None) -> dict[str, Arms]:
    """By arm the experiment that it is shown from: the second, for an arm of both; and the added sizes."""
    found = {name: first for name, _ in first.curves}
    if second is not None:
        found |= {name: second for name, _ in second.curves}
    return found if extra is None else found | {f"{name}, {OTHER}": extra for name in extra.fixed()}


def panel(axes: pyplot.Axes, first: Arms, second: Arms | None, extra: Arms | None = None) -> None:
    """One of the panels of all workloads."""
    source = sources(first, second, extra)
    lines(axes, source, SHOWN, 1e12, size=8, factor=2.3)
    axes.set(xlabel="training TFLOPs, everything charged", ylabel="test loss, nats")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")


def lines(
    axes: pyplot.Axes,
    source: Mapping[str, Arms],
    shown: Mapping[str, tuple[str, str]],
    unit: float,
    size: float,
    factor: float,
    fixed_label: str = "",
    above: float | None = None,
) -> None:
    """Fixed sizes in grey, growth in colour; the x axis ends at ``factor`` times the largest cost.

    ``above``: how far the y axis reaches above the highest last end, in spreads of the last ends; None: to
    the highest of all.
    """
    labels = []
    for key in sorted(source):
        arms, (name, _, other) = source[key], key.partition(",")
        fixed, depth = arms.arms[name].fixed, arms.arms[name].depth
        if not (fixed or name in shown):
            continue
        other = ", lower rate" if arms.arms[name].factor < 1 else other and f",{other}"
        curves = [arms.curves[name, seed] for seed in arms.seeds(name)]
        points = list(zip(*(curve.ends for curve in curves), strict=True))
        flops = [estimate([end.flops for end in same]).mean / unit for same in points]
        losses = [estimate([end.loss for end in same]) for same in points]
        text, colour = shown.get(
            name, (f"{depth} block{'s' if depth > 1 else ''}{fixed_label}{other}", "0.45")
        )
        style = {"color": colour, "marker": "o", "markersize": 3 if fixed else 4}
        style |= {"linestyle": "-" if fixed else "--", "linewidth": 1 if fixed else 1.6}
        errors = [found.standard_error or 0.0 for found in losses]
        axes.errorbar(flops, [found.mean for found in losses], yerr=errors, capsize=2, **style)
        labels.append((losses[-1].mean, flops[-1], text, colour))
    axes.set_xscale("log")
    last = [loss for loss, *_ in labels]
    if above is not None:
        axes.set_ylim(min(last) - 0.1 * (max(last) - min(last)), max(last) + above * (max(last) - min(last)))
    _label(axes, labels, size, factor)


def _label(
    axes: pyplot.Axes, labels: list[tuple[float, float, str, str]], size: float, factor: float
) -> None:
    """Write (loss, FLOPs, text, colour) in a column at the right, each with a line to its end."""
    low, high = axes.get_ylim()
    furthest = max(flops for _, flops, _, _ in labels)
    axes.set_xlim(right=factor * furthest)
    at = float("-inf")
    for loss, flops, text, colour in sorted(labels):
        at = max(loss, at + 0.005 * size * (high - low))
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 2}
        place = {"xytext": (1.12 * furthest, at), "textcoords": "data", "va": "center", "fontsize": size}
        axes.annotate(text, (flops, loss), color=colour, arrowprops=line, **place)
