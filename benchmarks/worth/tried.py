"""What may make growth better: each thing that was tried against `CONTROL`, paired by random seed."""

from __future__ import annotations

from typing import Any

from benchmarks.worth.analysis import Arms, estimate
from benchmarks.worth.arms import CONTROL
from benchmarks.worth.questions import told

LEAST, ERRORS = 0.005, 2.0
"""Something helps if its loss is lower by more than so many nats and so many standard errors."""


def answers(arms: Arms) -> dict[str, Any]:
    """For the control and each arm that has run: loss, difference, and cost over that of the control."""
    if not arms.seeds(CONTROL):
        return {}
    return {name: _answer(arms, name) for name in arms.arms if arms.seeds(CONTROL, name)}


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
    if name != CONTROL:
        found["helps"] = error is not None and -difference.mean > max(LEAST, ERRORS * error)
    return found


def table(found: dict[str, Any]) -> list[str]:
    """Markdown, the lowest loss first."""
    lines = [
        f"| arm | test loss | over `{CONTROL}`, nats | its FLOPs over those | random seeds | helps |",
        "|---|---|---|---|---|---|",
    ]
    for name, of in sorted(found.items(), key=lambda item: item[1]["loss"]["mean"]):
        loss, difference = (_with_error(of[key]) for key in ("loss", "over_the_control"))
        verdict = {True: "yes", False: "no"}.get(of.get("helps"), "")
        difference = "" if name == CONTROL else difference
        lines.append(
            f"| {name} | {loss} | {difference} | {of['flops']:.3f} | {len(of['random_seeds'])} | {verdict} |"
        )
    return lines


def _with_error(found: dict[str, Any]) -> str:
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.4f}"
    return f"{found['mean']:.4f}{error}"
