"""Blocks that come as copies, against fixed sizes: the fourth experiment, and the arms of the fifth.

See PREREGISTERED_FOURTH.md.
"""

from __future__ import annotations

from typing import Any

from benchmarks.worth.analysis import Arms, estimate
from benchmarks.worth.arms import COPIES, GROW_COPIES, SOONER, STEPPED, ZEROED
from benchmarks.worth.questions import told, with_error
from benchmarks.worth.tried import below_other
from benchmarks.worth.unknown import below_best, blocks

END = 1.0
OTHER = ", added"
"""Behind the name of a fixed size with another learning rate."""
GROWN = (GROW_COPIES, SOONER, COPIES, ZEROED)


def answers(arms: Arms, extra: Arms | None = None) -> dict[str, Any]:
    """For each arm its loss; for those that grow, how far it is below the best size and the controls.

    ``extra``: a fixed size with another learning rate, which was added afterwards.
    """
    found: dict[str, Any] = {}
    for name in arms.arms:
        if not (seeds := arms.seeds(name)):
            continue
        found[name] = row(arms, name)
        if name in GROWN:
            found[name]["below_best_fixed"] = below_best(arms, name, END, END)
            found[name]["below_stepped"] = below_best(arms, name, END, END, [STEPPED])
            if extra is not None and extra.fixed():
                found[name]["below_other_rate"] = below_other(arms, name, extra)
        if name == COPIES and ZEROED in arms.arms:
            found[name]["below_zeroed"] = below_best(arms, name, END, END, [ZEROED])
        if name == GROW_COPIES:
            found[name]["blocks"] = [blocks(arms, name, seed) for seed in seeds]
    if extra is not None:
        found |= {f"{size}{OTHER}": row(extra, size) for size in extra.fixed()}
    return found


def row(arms: Arms, name: str) -> dict[str, Any]:
    """What is told of each arm that has run: loss, learning rate, random seeds."""
    seeds = arms.seeds(name)
    losses = [arms.curves[name, seed].at_share(END).loss for seed in seeds]
    rate = arms.rates[name, seeds[0]]
    return {"loss": told(estimate(losses)), "learning_rate": rate, "random_seeds": seeds}


def table(found: dict[str, Any]) -> list[str]:
    """Markdown, the lowest loss first."""
    heads = ["arm", "test loss", "learning rate", "random seeds", *COLUMNS.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, of in sorted(found.items(), key=lambda item: item[1]["loss"]["mean"]):
        cells = [name, with_error(of["loss"]), f"{of['learning_rate']:g}", str(len(of["random_seeds"]))]
        lines.append(f"| {' | '.join([*cells, *(_against(of.get(key)) for key in COLUMNS)])} |")
    return lines


COLUMNS = {
    "below_best_fixed": "below the best fixed size, nats (which)",
    "below_other_rate": "below a size with another rate, added afterwards, nats (which)",
    "below_stepped": "below that size with a rate that falls likewise, nats",
    "below_zeroed": "below the same with zeroed output layers, nats",
}


def _against(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    if "learning_rate" in found:
        return f"{with_error(found)} ({found['arm']}, {found['learning_rate']:g})"
    size = found["best_fixed"]
    return with_error(found) + (f" ({size})" if size.startswith("fixed") else "")
