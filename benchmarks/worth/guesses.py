"""The sixth experiment: what a wrong guess of the size costs, from scratch and grown.

See PREREGISTERED_SIXTH.md.
"""

from __future__ import annotations

from typing import Any

from benchmarks.worth import copied, peers
from benchmarks.worth.against_best import above, best_of, sizes_of, unknown_size
from benchmarks.worth.analysis import Arms
from benchmarks.worth.guesses_arms import EARLY, TIMES
from benchmarks.worth.questions import percent, with_error

ERRORS = 2.0
GROWN = "copies-"


def answers(arms: Arms) -> dict[str, Any] | None:
    """For one task: the arms, what growth with an early block gives, and what guesses cost; None before."""
    sizes = sizes_of(arms)
    if not sizes:
        return None
    best = best_of(arms, sizes)
    grown = {depth: f"{GROWN}{depth}" for depth in TIMES if arms.seeds(f"{GROWN}{depth}")}
    return {
        "best_fixed": best,
        "arms": {name: copied.row(arms, name) for name in arms.arms if arms.seeds(name)},
        "early": _early(arms, best, grown) if arms.seeds(EARLY) else None,
        "guesses": {
            str(depth): {
                "fixed": sizes.get(depth),
                "fixed_above_best_by": above(arms, sizes[depth], best) if depth in sizes else None,
                "grown_above_best_by": above(arms, grown[depth], best) if depth in grown else None,
                "grown_minus_best": peers.over(arms, grown[depth], arms, best) if depth in grown else None,
                "grown_minus_fixed": (
                    peers.over(arms, grown[depth], arms, sizes[depth])
                    if depth in sizes and depth in grown
                    else None
                ),
            }
            for depth in sorted({*sizes, *grown})
        },
    }


def cheaper(found: dict[str, Any]) -> dict[str, Any]:
    """Question 3 over all tasks: in how many cases a wrong guess is cheaper grown than from scratch."""
    cases = {
        f"{task}-{depth}": guess["grown_minus_fixed"]
        for task, of in found.items()
        for depth, guess in of["guesses"].items()
        if int(depth) in wrong(task) and guess["grown_minus_fixed"]
    }
    sure = {
        name: case
        for name, case in cases.items()
        if abs(case["mean"]) > ERRORS * (case["standard_error"] or 0)
    }
    return {
        "cases": len(cases),
        "lower": sum(case["mean"] < 0 for case in sure.values()),
        "higher": sum(case["mean"] > 0 for case in sure.values()),
    }


def wrong(task: str) -> tuple[int, ...]:
    """The guesses that count as wrong, by the registration."""
    return {"thin": (2, 8), "long": ()}.get(task, (4, 8))


def _early(arms: Arms, best: str, grown: dict[int, str]) -> dict[str, Any]:
    minus = {name: peers.over(arms, EARLY, arms, name) for name in grown.values()}
    return {**unknown_size(arms, EARLY, best), "minus": minus}


def table(found: dict[str, Any]) -> list[str]:
    """Markdown: the answers for one task, then its arms, the lowest loss first."""
    lines = [
        "| guess | from scratch, above the best size | grown, above it | grown minus from scratch, nats |"
    ]
    lines.append("|---" * 4 + "|")
    for depth, of in found["guesses"].items():
        cells = [percent(of["fixed_above_best_by"]), percent(of["grown_above_best_by"])]
        cells.append(with_error(of["grown_minus_fixed"]) if of["grown_minus_fixed"] else "")
        lines.append(f"| {depth} blocks | {' | '.join(cells)} |")
    if early := found["early"]:
        over = f"{with_error(early['minus_best'])} minus {found['best_fixed']}"
        ends = f"{', '.join(map(str, early['blocks']))} blocks"
        lines.append(f"| none: `{EARLY}` | | {percent(early['above_best_by'])} | {over}; {ends} |")
    return [*lines, "", *copied.table(found["arms"])]
