"""Adapters on a frozen host (PEFT), and growth in width (gromo), beside fixed sizes and growth by fxgraft.

See ADDED_AFTERWARDS.md.
"""

from __future__ import annotations

from typing import Any

from benchmarks.worth import copied
from benchmarks.worth.analysis import Arms, estimate
from benchmarks.worth.arms import COPIES, FREE, GROMO, GROW_COPIES, STEPPED_WIDTH, WIDER
from benchmarks.worth.protocols import LARGE
from benchmarks.worth.questions import told, with_error

BESIDE = ("fixed-1", "fixed-2", COPIES, GROW_COPIES)
"""Of the protocol "copies": the same budget on the same random seeds."""
GROWN = (WIDER, GROMO, FREE, STEPPED_WIDTH)


def adapters(arms: Arms, copies: Arms | None) -> dict[str, Any]:
    """For each arm its loss, and how far it is above those of the protocol "copies"."""
    found = _rows(arms)
    for name in found:
        found[name]["over"] = {other: over(arms, name, copies, other) for other in BESIDE if copies}
    return found


def widths(arms: Arms) -> dict[str, Any]:
    """For each arm its loss, what it computed to grow, and how far it is above the others."""
    found = _rows(arms)
    for name, of in found.items():
        if arms.arms[name].fixed:
            continue
        others = (f"fixed-{LARGE}", *(other for other in GROWN if other != name and other in found))
        of["over"] = {other: over(arms, name, arms, other) for other in others}
        of["change"] = _change(arms, name)
    return found


def _rows(arms: Arms) -> dict[str, Any]:
    return {name: copied.row(arms, name) for name in arms.arms if arms.seeds(name)}


def over(arms: Arms, name: str, others: Arms, other: str) -> dict[str, Any] | None:
    """How far an arm is above another one, paired by random seed."""
    seeds = [seed for seed in arms.seeds(name) if seed in others.seeds(other)]
    pairs = [
        [of.curves[arm, seed].at_share(copied.END).loss for of, arm in ((arms, name), (others, other))]
        for seed in seeds
    ]
    return told(estimate([ours - theirs for ours, theirs in pairs])) if pairs else None


def _change(arms: Arms, name: str) -> dict[str, float]:
    """Which share of all FLOPs, and of all CPU seconds, a run spent on growing itself."""
    ends = [
        record["ends"][-1]
        for record in arms.records.values()
        if record["run"]["arm"] == name and not record["run"]["tuning"]
    ]
    spent = {of: [end[of]["change"] / sum(end[of].values()) for end in ends] for of in ("flops", "seconds")}
    return {of: round(estimate(shares).mean, 4) for of, shares in spent.items()}


def table(found: dict[str, Any]) -> list[str]:
    """Markdown, the lowest loss first."""
    others = list(dict.fromkeys(other for of in found.values() for other in of.get("over", {})))
    heads = ["arm", "test loss", "learning rate", "random seeds"]
    heads += [f"over `{other}`, nats" for other in others]
    heads += ["share of FLOPs for growing"] * any("change" in of for of in found.values())
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, of in sorted(found.items(), key=lambda item: item[1]["loss"]["mean"]):
        cells = [name, with_error(of["loss"]), f"{of['learning_rate']:g}", str(len(of["random_seeds"]))]
        over = [of.get("over", {}).get(other) for other in others]
        cells += [with_error(each) if each else "" for each in over]
        if len(heads) > len(cells):
            cells.append(f"{of['change']['flops']:.3f}" if "change" in of else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
