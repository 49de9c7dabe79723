"""The ends of runs, and what lies between them. Nothing is extrapolated: outside of an arm's ends is None."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.worth.arms import arms
from benchmarks.worth.protocols import Protocol
from benchmarks.worth.results import Records, run_of


@dataclass(frozen=True)
class End:
    """Where a run ended: one complete schedule. ``training_flops`` are without evaluations and changes."""

    share: float
    flops: float
    seconds: float
    loss: float
    validation: float
    training_flops: float


@dataclass(frozen=True)
class Curve:
    """The ends of one arm with one random seed, by rising cost."""

    ends: tuple[End, ...]

    def at_share(self, share: float) -> End:
        """The end that was asked for by this multiple."""
        return next(end for end in self.ends if math.isclose(end.share, share))

    def loss_at(self, cost: float, of: str = "flops") -> float | None:
        """The loss at a cost, linear in its logarithm between two ends; None outside."""
        for low, high in pairwise(self.ends):
            a, b = getattr(low, of), getattr(high, of)
            if a <= cost <= b:
                part = math.log(cost / a) / math.log(b / a)
                return low.loss + part * (high.loss - low.loss)
        return None

    def cost_of(self, loss: float, of: str = "flops") -> float | None:
        """The lowest cost at which the line through the ends is at most ``loss``; None if it never is.

        The first end itself may be below: then its cost is given, which is an upper bound.
        """
        if self.ends[0].loss <= loss:
            return float(getattr(self.ends[0], of))
        for low, high in pairwise(self.ends):
            if high.loss <= loss:
                a, b = getattr(low, of), getattr(high, of)
                part = (low.loss - loss) / (low.loss - high.loss)
                return float(a * (b / a) ** part)
        return None


@dataclass(frozen=True)
class Estimate:
    """A mean over random seeds, with its standard error (None for a single one)."""

    mean: float
    standard_error: float | None
    values: tuple[float, ...]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error: the deviation of the sample over the root of its size."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), error, tuple(values))


class Arms:
    """The final runs of one workload, by (arm, random seed): their ends, and their learning rates."""

    def __init__(self, protocol: Protocol, workload: str, records: Records):
        self.protocol, self.workload, self.records = protocol, workload, records
        self.arms = arms(protocol, workload)
        self.curves: dict[tuple[str, int], Curve] = {}
        self.rates: dict[tuple[str, int], float] = {}
        for record in records.values():
            run = run_of(record)
            if run.workload == workload and not run.tuning and run.arm in self.arms:
                self.curves[run.arm, run.seed] = curve_of(record)
                self.rates[run.arm, run.seed] = run.rate

    def seeds(self, *names: str) -> list[int]:
        """The random seeds for which all of these arms have run."""
        return [seed for seed in self.protocol.seeds if all((name, seed) in self.curves for name in names)]

    def fixed(self) -> list[str]:
        """Names of the fixed sizes that have run at all, small ones first."""
        return [name for name, arm in self.arms.items() if arm.fixed and self.seeds(name)]

    def tuning_flops(self, name: str) -> float:
        """What the choice of this arm's learning rate cost."""
        spent = 0.0
        for record in self.records.values():
            run = run_of(record)
            if run.tuning and (run.workload, run.arm) == (self.workload, name):
                spent += sum(record["ends"][-1]["flops"].values())
        return spent


def curve_of(record: dict[str, Any]) -> Curve:
    """The ends of a record."""
    ends = [
        End(
            end["share"], sum(end["flops"].values()), sum(end["seconds"].values()),
            end["test"], end["validation"], end["flops"]["train"],
        )
        for end in record["ends"]
    ]  # fmt: skip
    return Curve(tuple(sorted(ends, key=lambda end: end.flops)))
