"""An arm: one way to come to a trained network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.worth.protocols import LARGE

TRIED_AS_COPIES = {
    "first": 0.05, "last": 0.5, "hold": 0.1, "init": "copy", "statistics": "batch", "lower": 0.5,
}  # fmt: skip
"""How `by_fxgraft.Grown` tries blocks since the fourth experiment, and what its arms change things of."""


@dataclass(frozen=True)
class Arm:
    """One way to come to a trained network.

    Attributes:
        name: unique.
        depth: blocks at the start.
        changes: when (in multiples of N steps; for "shares", of the budget) and to how many blocks.
        how: the kind of learner, a key of `learners.KINDS`.
        options: for the learner.
        tuned_as: the arm whose learning rate it takes; its own name if it is tuned itself.
        ends: multiples of N steps; for fixed sizes and for budgets, of the large network's FLOPs instead.
        factor: what the learning rate that was chosen is multiplied by.
        rate: a learning rate that is given; None: it is chosen.
        inside: for fixed sizes, whether evaluations have to fit into the FLOPs of an end, as for budgets.
        like: N is of a network of so many blocks, which costs what the large one costs in its own N steps.
        seeds: "one", "all", or "finalist" (all, and early); fixed sizes become finalists by their results.
        protocols: where it is run.
        workloads: likewise.
    """

    name: str
    depth: int
    how: str
    tuned_as: str
    ends: tuple[float, ...]
    changes: tuple[tuple[float, int], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: str = "one"
    protocols: tuple[str, ...] = ("short", "full", "quick")
    workloads: tuple[str, ...] = ("gpt", "cnn", "thin")
    like: int = LARGE
    inside: bool = False
    factor: float = 1.0
    rate: float | None = None

    @property
    def fixed(self) -> bool:
        """Whether it is one of the fixed sizes, whose ends are at equal FLOPs."""
        return self.how == "fixed"
