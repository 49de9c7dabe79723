"""The three questions, each answered for any arm that grows, with the controls that a sceptic asks for."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.worth.analysis import Arms, Estimate, estimate
from benchmarks.worth.protocols import LARGEST

NEAR = 1.01  # (c): so many times the best loss is near enough
FULL, CHEAP = 1.0, 0.3  # C: of the sweep, and of the cheap one


def share_of_large(arms: Arms, arm: str, of: str) -> dict[str, Any]:
    """(a) The share of the large network's cost at which an arm reaches its loss at 1.0 C."""
    shares, gaps = [], []
    for seed in arms.seeds(arm, LARGEST):
        large = arms.curves[LARGEST, seed].at_share(FULL)
        curve = arms.curves[arm, seed]
        cost = curve.cost_of(large.loss, of)
        gaps.append(min(end.loss for end in curve.ends) - large.loss)
        if cost is not None:
            shares.append(cost / getattr(large, of))
    reached = bool(shares) and len(shares) == len(gaps)
    found = told(estimate(shares)) if reached else {"mean": None, "standard_error": None}
    return found | {
        "reached": f"{len(shares)} of {len(gaps)}",
        "gap": told(estimate(gaps)) if gaps else None,
    }


def best_smaller_share(arms: Arms) -> dict[str, Any] | None:
    """The control of (a): the same for the smaller fixed size that reaches the loss most cheaply."""
    found = {}
    for name in arms.fixed():
        answer = share_of_large(arms, name, "flops") if name != LARGEST else {"mean": None}
        if answer["mean"] is not None and len(arms.seeds(name)) == len(arms.seeds(LARGEST)):
            found[name] = answer
    if not found:
        return None
    best = min(found, key=lambda name: found[name]["mean"])
    return {"arm": best, **found[best]}


def below_envelope(arms: Arms, arm: str, share: float = 1.0) -> dict[str, Any] | None:
    """(b) How far an arm's end lies below the best fixed size of the same FLOPs; paired by random seed."""
    differences: dict[str, Estimate] = {}
    wanted = arms.seeds(arm)
    for name in arms.fixed():
        pairs = []
        for seed in arms.seeds(name, arm):
            end = arms.curves[arm, seed].at_share(share)
            loss = arms.curves[name, seed].loss_at(end.flops)
            if loss is not None:
                pairs.append(loss - end.loss)
        if len(pairs) == len(wanted):  # with all random seeds: a finalist
            differences[name] = estimate(pairs)
    if not differences:
        return None
    best = min(differences, key=lambda name: differences[name].mean)
    return {"best_fixed": best, **told(differences[best])}


def unknown_size(arms: Arms, arm: str) -> dict[str, Any] | None:
    """(c) What growing costs until it is near the best fixed size, over the sweep that finds that size."""
    first = arms.protocol.seeds[0]
    names = arms.fixed()
    if (
        (arm, first) not in arms.curves
        or any((name, first) not in arms.curves for name in names)
        or not names
    ):
        return None
    ends = {name: arms.curves[name, first].at_share(FULL) for name in names}
    best = min(names, key=lambda name: ends[name].loss)
    goal = NEAR * ends[best].loss
    sweep = sum(end.flops for end in ends.values())
    early = {name: arms.curves[name, first].at_share(CHEAP) for name in names}
    chosen = min(names, key=lambda name: early[name].validation)
    cheap = sum(end.flops for end in early.values()) + ends[chosen].flops
    rates = sum(map(arms.tuning_flops, names))
    own_rates = arms.tuning_flops(arms.arms[arm].tuned_as)
    cost = arms.curves[arm, first].cost_of(goal)
    lowest = min(end.loss for end in arms.curves[arm, first].ends)

    def share(of: float, extra: float = 0.0) -> float | None:
        return None if cost is None else round((cost + extra) / of, 4)

    return {
        "best_fixed": best,
        "loss_to_reach": round(goal, 5),
        "lowest_loss": round(lowest, 5),
        "over_the_sweep": share(sweep),
        "over_the_sweep_with_learning_rates": share(sweep + rates, own_rates),
        "over_the_cheap_sweep": share(cheap),
        "cheap_sweep_chose": chosen,
        "cheap_sweep_misses_best_by": round(ends[chosen].loss / ends[best].loss - 1, 5),
        "guessing_misses_best_by": {name: round(ends[name].loss / ends[best].loss - 1, 5) for name in names},
        "guessing_costs": round(statistics.fmean(end.flops for end in ends.values()) / sweep, 4),
    }


def with_error(found: dict[str, Any]) -> str:
    """What `told` gave, as text."""
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.4f}"
    return f"{found['mean']:.4f}{error}"


def percent(share: float | None) -> str:
    """As text, with one digit; empty where it is not known."""
    return "" if share is None else f"{100 * share:.1f} %"


def told(found: Estimate) -> dict[str, Any]:
    """In JSON types."""
    error = None if found.standard_error is None else round(found.standard_error, 5)
    return {
        "mean": round(found.mean, 5),
        "standard_error": error,
        "values": [round(v, 5) for v in found.values],
    }
