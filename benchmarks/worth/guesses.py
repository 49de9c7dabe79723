"""The sixth experiment: what a wrong guess of the size costs, from scratch and grown.

See PREREGISTERED_SIXTH.md. Of a fixed size with two learning rates the one with the lower mean loss counts;
the best size is one of those that have run with all random seeds that any has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.worth import copied, peers
from benchmarks.worth.analysis import Arms
from benchmarks.worth.guesses_arms import EARLY, FIXED_RATES, OTHER, TIMES
from benchmarks.worth.questions import NEAR, percent, with_error
from benchmarks.worth.unknown import blocks, mean_end

SWEEP = {"cnn": 4, "thin": 4}
"""Sizes of a sweep, as in the earlier experiments; six elsewhere."""
ERRORS = 2.0
GROWN = "copies-"


def answers(arms: Arms) -> dict[str, Any] | None:
    """For one task: the arms, what growth with an early block gives, and what guesses cost; None before."""
    sizes = {depth: name for depth in FIXED_RATES[arms.workload] if (name := _better(arms, depth))}
    if not sizes:
        return None
    most = max(len(arms.seeds(name)) for name in sizes.values())
    whole = [name for name in sizes.values() if len(arms.seeds(name)) == most]
    best = min(whole, key=lambda name: _loss(arms, name))
    grown = {depth: f"{GROWN}{depth}" for depth in TIMES if arms.seeds(f"{GROWN}{depth}")}
    return {
        "best_fixed": best,
        "arms": {name: copied.row(arms, name) for name in arms.arms if arms.seeds(name)},
        "early": _early(arms, best, grown) if arms.seeds(EARLY) else None,
        "guesses": {
            str(depth): {
                "fixed": sizes.get(depth),
                "fixed_above_best_by": _above(arms, sizes[depth], best) if depth in sizes else None,
                "grown_above_best_by": _above(arms, grown[depth], best) if depth in grown else None,
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


def _better(arms: Arms, depth: int) -> str | None:
    """The fixed size with the better one of its learning rates, of those that have run."""
    names = [name for end in ("", OTHER) if arms.seeds(name := f"fixed-{depth}{end}")]
    return min(names, key=lambda name: _loss(arms, name)) if names else None


def _loss(arms: Arms, name: str, seeds: Sequence[int] | None = None) -> float:
    found = arms.seeds(name) if seeds is None else seeds
    return mean_end([arms.curves[name, seed].at_share(copied.END) for seed in found]).loss


def _above(arms: Arms, name: str, best: str) -> float:
    """By what share an arm's loss is above that of the best size, on the random seeds that both have."""
    seeds = arms.seeds(name, best)
    return round(_loss(arms, name, seeds) / _loss(arms, best, seeds) - 1, 5)


def _early(arms: Arms, best: str, grown: dict[int, str]) -> dict[str, Any]:
    above, seeds = _above(arms, EARLY, best), arms.seeds(EARLY)
    costs = [
        mean_end([arms.curves[name, seed].at_share(copied.END) for seed in arms.seeds(name)]).flops
        for name in (EARLY, best)
    ]
    sweep = SWEEP.get(arms.workload, 6) * costs[1]
    return {
        "minus_best": peers.over(arms, EARLY, arms, best),
        "above_best_by": above,
        "near": above <= NEAR - 1,
        "blocks": [blocks(arms, EARLY, seed) for seed in seeds],
        "over_the_sweep": round(costs[0] / sweep, 4),
        "minus": {name: peers.over(arms, EARLY, arms, name) for name in grown.values()},
    }


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
