"""The fourth experiment as a picture: the test loss of each arm, a point for each random seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot

from benchmarks.worth.arms import COPIES, GROW_COPIES, STEPPED, ZEROED
from benchmarks.worth.copied import OTHER
from benchmarks.worth.plot import TITLES
from fxgraft.util.text import pluralize

FILE = "worth_copies.png"
LABELS = {
    GROW_COPIES: ("size not known: grows by copies", "tab:green"),
    COPIES: ("size known: grown by copies", "tab:blue"),
    ZEROED: ("size known: grown, output layers zeroed", "tab:gray"),
    STEPPED: ("that size from the start, rate falls as in growth", "tab:gray"),
}


def draw(workloads: dict[str, dict[str, Any]], folder: Path) -> None:
    """``workloads``: what `copied.answers` gave for each."""
    figure, panels = pyplot.subplots(
        1, len(workloads), figsize=(6 * len(workloads), 4), layout="constrained", squeeze=False
    )
    for axes, (name, told) in zip(panels[0], workloads.items(), strict=True):
        arms = sorted(told, key=lambda arm: told[arm]["loss"]["mean"], reverse=True)
        for place, arm in enumerate(arms):
            loss = told[arm]["loss"]
            label, color = LABELS.get(arm) or (_size(arm), "black")
            axes.scatter(loss["values"], [place] * len(loss["values"]), color=color, s=16, alpha=0.6)
            axes.errorbar(loss["mean"], place, xerr=loss["standard_error"], fmt="D", color=color, capsize=4)
            axes.annotate(
                label, (loss["mean"], place), xytext=(0, 7), textcoords="offset points", ha="center"
            )
        axes.set_title(TITLES.get(name, name))
        axes.set_xlabel("test loss, nats (same FLOPs; points: random seeds)")
        axes.set_yticks([])
        axes.set_ylim(-0.6, len(arms) - 0.1)
        axes.margins(x=0.35)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
    figure.savefig(folder / FILE, dpi=100)
    pyplot.close(figure)


def _size(arm: str) -> str:
    depth = int(arm.removeprefix("fixed-").removesuffix(OTHER))
    return f"{pluralize(depth, 'block')} from the start" + (", other rate" if arm.endswith(OTHER) else "")
