"""What may make growth better: each thing that was tried against `CONTROL`, paired by random seed."""

from __future__ import annotations

from typing import Any

from benchmarks.worth.analysis import Arms, estimate
from benchmarks.worth.arms import CONTROL
from benchmarks.worth.questions import told, with_error
from benchmarks.worth.unknown import PEERS, below_best

LEAST, ERRORS = 0.005, 2.0
"""Something helps if its loss is lower by more than so many nats and so many standard errors."""


def answers(arms: Arms, lower_rate: Arms | None = None) -> dict[str, Any]:
    """For each arm that grows: its loss, over that of the control, and below that of the best fixed size.

    ``lower_rate``: two blocks with a lower learning rate, which were added afterwards.
    """
    if not arms.seeds(CONTROL):
        return {}
    grown = [name for name, arm in arms.arms.items() if not arm.fixed]
    found = {name: _answer(arms, name) for name in grown if arms.seeds(CONTROL, name)}
    for name in found if lower_rate is not None and lower_rate.fixed() else ():
        found[name]["below_lower_rate"] = below_other(arms, name, lower_rate)
    return found


def below_other(arms: Arms, name: str, control: Arms) -> dict[str, Any]:
    """How far an arm is below the one size of other runs; paired by random seed."""
    (size,) = control.fixed()
    seeds = [seed for seed in arms.seeds(name) if seed in control.seeds(size)]
    pairs = [(control.curves[size, seed].ends[-1], arms.curves[name, seed].ends[-1]) for seed in seeds]
    return {
        **told(estimate([theirs.loss - ours.loss for theirs, ours in pairs])),
        "arm": size,
        "learning_rate": control.protocol.scales[arms.workload].rates[0],
        "loss": told(estimate([theirs.loss for theirs, _ in pairs])),
    }


def _answer(arms: Arms, name: str) -> dict[str, Any]:
    seeds = arms.seeds(CONTROL, name)
    ends = {
        each: [arms.curves[each, seed].ends[-1] for seed in seeds] for each in dict.fromkeys((CONTROL, name))
    }
    difference = estimate([a.loss - b.loss for a, b in zip(ends[name], ends[CONTROL], strict=True)])
    error = difference.standard_error
    found = {
        "loss": told(estimate([end.loss for end in ends[name]])),
        "over_the_control": told(difference),
        "flops": round(sum(end.flops for end in ends[name]) / sum(end.flops for end in ends[CONTROL]), 4),
        "random_seeds": seeds,
    }
    if arms.fixed():
        found["below_best_fixed"] = below_best(arms, name, 1.0, PEERS[CONTROL])
    if name != CONTROL:
        found["helps"] = error is not None and -difference.mean > max(LEAST, ERRORS * error)
    return found


def table(found: dict[str, Any]) -> list[str]:
    """Markdown, the lowest loss first."""
    given = [key for key in COLUMNS if any(of.get(key) for of in found.values())]
    heads = ["arm", "test loss", f"over `{CONTROL}`, nats", "its FLOPs over those", "random seeds", "helps"]
    heads += [COLUMNS[key] for key in given]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, of in sorted(found.items(), key=lambda item: item[1]["loss"]["mean"]):
        loss, difference = (with_error(of[key]) for key in ("loss", "over_the_control"))
        verdict = {True: "yes", False: "no"}.get(of.get("helps"), "")
        difference = "" if name == CONTROL else difference
        cells = [name, loss, difference, f"{of['flops']:.3f}", str(len(of["random_seeds"])), verdict]
        cells += [_against(of.get(key)) for key in given]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


COLUMNS = {
    "below_best_fixed": "below the best fixed size, nats (which, and FLOPs over its)",
    "below_lower_rate": "below 2 blocks with a lower rate, nats (which)",
}


def _against(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    if "learning_rate" in found:
        return f"{with_error(found)} ({found['learning_rate']:g})"
    return f"{with_error(found)} ({found['best_fixed']}, {found['flops_ratio']:.3f})"
