"""Tells which run begins and ends, and about how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from benchmarks.worth.arm import Arm
from benchmarks.worth.arms import arms
from benchmarks.worth.learners import KINDS
from benchmarks.worth.protocols import LARGE, Protocol
from benchmarks.worth.results import Records, run_of
from benchmarks.worth.schedule import DECAY
from benchmarks.worth.training import Run
from benchmarks.worth.workloads import Workload


class Costs:
    """What the runs of one workload cost, in multiples of the large network's N steps."""

    def __init__(self, protocol: Protocol, task: Workload):
        self.arms, self.tuning = arms(protocol, task.name), task.scale.tuning
        depths = {LARGE, *(arm.depth for arm in self.arms.values())}
        depths |= {depth for arm in self.arms.values() for _, depth in arm.changes}
        self.flops = {depth: task.step_flops(depth) for depth in depths}

    def of(self, run: Run) -> float:
        """Of the whole run: its longest end, and the decays of the others."""
        arm = self.arms[run.arm]
        if run.tuning:
            return self.tuning * self.path(arm, 1.0)
        last, *others = sorted((self.path(arm, end) for end in arm.ends), reverse=True)
        return last + sum(others) if KINDS[arm.how].budgeted else last + DECAY * sum(others)

    def path(self, arm: Arm, end: float) -> float:
        """From the first step to this end."""
        if arm.fixed or KINDS[arm.how].budgeted:
            return end
        bounds = [0.0, *(min(at, end) for at, _ in arm.changes), end]
        depths = [arm.depth, *(depth for _, depth in arm.changes)]
        parts = zip(depths, pairwise(bounds), strict=True)
        return sum(self.flops[depth] / self.flops[arm.like] * (b - a) for depth, (a, b) in parts)

    def seconds_of_one(self, records: Records) -> float | None:
        """The CPU seconds that a cost of 1 took in earlier runs, wherever they were made."""
        seconds, cost = 0.0, 0.0
        for record in records.values():
            run, end = run_of(record), record["ends"][-1]
            if run.arm in self.arms and not run.tuning:
                seconds += sum(end["seconds"].values())
                cost += self.path(self.arms[run.arm], end["share"])
        return seconds / cost if cost else None


class Progress:
    """Of one workload. The speed is that of the runs before; for the first one that of the records."""

    def __init__(self, costs: Costs, records: Records):
        self.costs, self.expected = costs, costs.seconds_of_one(records)
        self.done, self.spent = 0.0, 0.0

    def minutes(self, runs: Iterable[Run]) -> float | None:
        """About how long they take; None where nothing is known."""
        one = self.spent / self.done if self.done else self.expected
        return None if one is None else one * sum(map(self.costs.of, runs)) / 60

    def begin(self, run: Run, left: list[Run]) -> None:
        """A run begins; ``left`` are it and all others that are known to come."""
        self.began, self.cost = time.monotonic(), self.costs.of(run)
        print(f"{run.name}; {len(left)} runs known to be left, {about(self.minutes(left))}", flush=True)

    def end(self, record: dict[str, Any]) -> None:
        """It has ended."""
        took = time.monotonic() - self.began
        self.done, self.spent = self.done + self.cost, self.spent + took
        ends = ", ".join(f"{end['test']:.4f} at {end['share']:g}" for end in record["ends"])
        print(f"    {took:.0f} s; test loss {ends}", flush=True)


def about(minutes: float | None) -> str:
    """In words."""
    return "not known how long" if minutes is None else f"about {minutes:.0f} min"
