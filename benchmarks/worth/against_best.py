"""How an arm compares to the best fixed size, in the sixth and seventh experiments.

Of a fixed size with two learning rates the one with the lower mean loss counts; the best size is one of those
that have run with all random seeds that any has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.worth import copied, peers
from benchmarks.worth.analysis import Arms
from benchmarks.worth.guesses_arms import FIXED_RATES, OTHER
from benchmarks.worth.questions import NEAR
from benchmarks.worth.unknown import blocks, mean_end

SWEEP = {"cnn": 4, "thin": 4}
"""Sizes of a sweep, as in the earlier experiments; six elsewhere."""


def sizes_of(arms: Arms) -> dict[int, str]:
    """The fixed sizes that have run, each with the better one of its learning rates."""
    return {depth: name for depth in FIXED_RATES[arms.workload] if (name := _better(arms, depth))}


def best_of(arms: Arms, sizes: Mapping[int, str]) -> str:
    """The best one of these sizes."""
    most = max(len(arms.seeds(name)) for name in sizes.values())
    whole = [name for name in sizes.values() if len(arms.seeds(name)) == most]
    return min(whole, key=lambda name: _loss(arms, name))


def above(arms: Arms, name: str, best: str) -> float:
    """By what share an arm's loss is above that of the best size, on the random seeds that both have."""
    seeds = arms.seeds(name, best)
    return round(_loss(arms, name, seeds) / _loss(arms, best, seeds) - 1, 5)


def unknown_size(arms: Arms, name: str, best: str) -> dict[str, Any]:
    """Of an arm that had to find its size: how far it is from the best one, what it costs over a sweep."""
    share, costs = above(arms, name, best), [_flops(arms, arm) for arm in (name, best)]
    return {
        "minus_best": peers.over(arms, name, arms, best),
        "above_best_by": share,
        "near": share <= NEAR - 1,
        "blocks": [blocks(arms, name, seed) for seed in arms.seeds(name)],
        "over_the_sweep": round(costs[0] / (SWEEP.get(arms.workload, 6) * costs[1]), 4),
    }


def _better(arms: Arms, depth: int) -> str | None:
    """The fixed size with the better one of its learning rates, of those that have run."""
    names = [name for end in ("", OTHER) if arms.seeds(name := f"fixed-{depth}{end}")]
    return min(names, key=lambda name: _loss(arms, name)) if names else None


def _loss(arms: Arms, name: str, seeds: Sequence[int] | None = None) -> float:
    found = arms.seeds(name) if seeds is None else seeds
    return mean_end([arms.curves[name, seed].at_share(copied.END) for seed in found]).loss


def _flops(arms: Arms, name: str) -> float:
    return mean_end([arms.curves[name, seed].at_share(copied.END) for seed in arms.seeds(name)]).flops
