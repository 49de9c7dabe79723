"""Tells which run begins and ends, and about how long the rest takes."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from benchmarks.worth.arms import Arm, arms
from benchmarks.worth.protocols import LARGE, TUNING_SCALE, Protocol
from benchmarks.worth.schedule import DECAY
from benchmarks.worth.training import Run
from benchmarks.worth.workloads import Workload


class Progress:
    """Of one workload. Costs are in multiples of the large network's; the speed is that of earlier runs."""

    def __init__(self, protocol: Protocol, task: Workload):
        self.task, self.arms = task, arms(protocol, task.name)
        depths = {LARGE, *(arm.depth for arm in self.arms.values())}
        depths |= {depth for arm in self.arms.values() for _, depth in arm.changes}
        self.flops = {depth: task.step_flops(depth) for depth in depths}
        self.done, self.spent = 0.0, 0.0

    def begin(self, run: Run, left: list[Run]) -> None:
        """A run begins; ``left`` are it and all others that are known to come."""
        self.began, self.cost = time.monotonic(), self._cost(run)
        rest = sum(map(self._cost, left))
        minutes = f"about {self.spent / self.done * rest / 60:.0f} min" if self.done else "not known how long"
        print(f"{run.name}; {len(left)} runs known to be left, {minutes}", flush=True)

    def end(self, record: dict[str, Any]) -> None:
        """It has ended."""
        took = time.monotonic() - self.began
        self.done, self.spent = self.done + self.cost, self.spent + took
        ends = ", ".join(f"{end['test']:.4f} at {end['share']:g}" for end in record["ends"])
        print(f"    {took:.0f} s; test loss {ends}", flush=True)

    def _cost(self, run: Run) -> float:
        arm = self.arms[run.arm]
        if run.tuning:
            return TUNING_SCALE * self._path(arm, 1.0)
        last, *others = sorted((self._path(arm, end) for end in arm.ends), reverse=True)
        return last + DECAY * sum(others)

    def _path(self, arm: Arm, end: float) -> float:
        """From the first step to this end."""
        if arm.fixed:
            return end
        bounds = [0.0, *(min(at, end) for at, _ in arm.changes), end]
        depths = [arm.depth, *(depth for _, depth in arm.changes)]
        parts = zip(depths, pairwise(bounds), strict=True)
        return sum(self.flops[depth] / self.flops[arm.like] * (b - a) for depth, (a, b) in parts)
