"""One run: a part at constant learning rate, and from it a decay to each of its ends. Resumes after a kill.

The state is kept every minute and before each decay; a run that was killed goes on from there, bit for bit.
What was spent between the last state and the kill is spent again, and charged once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.worth import schedule
from benchmarks.worth.arm import Arm
from benchmarks.worth.costs import Counted, Ledger
from benchmarks.worth.learners import KINDS, Setting
from benchmarks.worth.workloads import Workload

SECONDS_BETWEEN_STATES = 60.0


@dataclass(frozen=True)
class Run:
    """One arm with one learning rate and one random seed; ``tuning``: a short one, to choose the rate."""

    workload: str
    arm: str
    seed: int
    rate: float
    tuning: bool = False

    @property
    def name(self) -> str:
        """Unique within a protocol; a file name."""
        end = "-tuning" if self.tuning else ""
        return f"{self.workload}-{self.arm}-lr{self.rate:g}-seed{self.seed}{end}"


class Trainer:
    """Carries one run. `train` returns its record, JSON types only."""

    def __init__(
        self, run: Run, arm: Arm, workload: Workload, scratch: Path, say: Callable[[str], None] = print
    ):
        self.run, self.arm, self.workload, self.say = run, arm, workload, say
        self.file = scratch / f"{run.name}.pt"
        self.length = scale = workload.scale.tuning if run.tuning else 1.0
        self.shares = (1.0,) if run.tuning else arm.ends
        unit = workload.steps_for(arm.like, scale)
        self.totals = [self._steps(share, share * scale, unit) for share in self.shares]
        self.warm = schedule.warm_up(self.totals[0])
        self.every = max(1, self.totals[-1] // workload.scale.points)
        self.setting = Setting(workload, arm, run.seed, run.rate, unit)
        self.ledger, self.counted = Ledger(), Counted()
        self.curve: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []
        self.step, self.kept_at = 0, time.monotonic()

    def _steps(self, share: float, scaled: float, unit: int) -> int:
        """Until an end."""
        if not self.arm.fixed:
            return round(share * unit)
        if self.arm.inside and not self.run.tuning:
            points = math.ceil(self.workload.scale.points * share / self.shares[-1]) + 2
            return self.workload.steps_within(self.arm.depth, share, points)
        return self.workload.steps_for(self.arm.depth, scaled)

    def train(self) -> dict[str, Any]:
        """Run to all ends, from the beginning or from where the last attempt was killed."""
        with self.ledger.time("change"):
            self.learner = KINDS[self.arm.how](self.setting)
        self._adopt(self.ledger)
        if self.learner.resumable and self.file.exists():
            self._resume()
        while len(self.ends) < len(self.shares):
            total = self.totals[len(self.ends)]
            self._constant_part(schedule.decay_start(total))
            self._finish(self.shares[len(self.ends)], total)
        self.file.unlink(missing_ok=True)
        return self._record(self.curve)

    def _record(self, curve: list[dict[str, Any]]) -> dict[str, Any]:
        parameters = sum(p.numel() for p in self.learner.model.parameters())
        return {
            "run": asdict(self.run), "fixed": self.arm.fixed, "depth": self.arm.depth,
            "changes": self.arm.changes, "steps": self.workload.scale.steps, "parameters": parameters,
            "curve": curve, "ends": self.ends,
        }  # fmt: skip

    def _adopt(self, ledger: Ledger) -> None:
        """Charge to this one from now on."""
        self.learner.ledger, self.learner.counted, self.charged = ledger, self.counted, ledger

    def _constant_part(self, until: int) -> None:
        while self.step < until:
            self._train_step(self.step, schedule.constant(self.step, self.warm))
            self.step += 1
            if self.step % self.every == 0:
                self.curve.append(self._point(self.step, self.curve))
            if time.monotonic() - self.kept_at > SECONDS_BETWEEN_STATES:
                self._keep()

    def _train_step(self, step: int, share: float) -> None:
        self.learner.begin(step)
        with self.charged.time("train"):
            batch = self.workload.batch(self.run.seed, step)
        self.loss = self.counted.run(
            self.charged, "train", self.learner.structure(), lambda: self.learner.step(batch, share)
        )
        self.learner.finish(self.loss)

    def _point(self, step: int, curve: list[dict[str, Any]]) -> dict[str, Any]:
        measured = self._measure("validation")
        return {"step": step, "train": self.loss, **measured, **self._spent()}

    def _measure(self, part: str) -> dict[str, float]:
        structure = (part, self.learner.changed if self.learner.resumable else self.learner.structure())
        return self.counted.run(
            self.charged, "evaluate", structure, lambda: self.workload.measure(self.learner.model, part)
        )

    def _spent(self) -> dict[str, Any]:
        return {"flops": self.charged.total_flops, "seconds": round(self.charged.total_seconds, 3)}

    def _finish(self, share: float, total: int) -> None:
        """Decay from here to an end; then go back, if there are ends to come."""
        last = len(self.ends) + 1 == len(self.shares)
        if self.learner.resumable:
            self._keep()
            before = self.learner.state()
        self._adopt(self.ledger.copy())
        curve: list[dict[str, Any]] = []
        for step in range(self.step, total):
            self._train_step(step, schedule.decaying(step, total))
            if (step + 1) % self.every == 0 and step + 1 < total:
                curve.append(self._point(step + 1, curve))
        curve.append(self._point(total, curve))
        self.ends.append(self._end(share, total, curve))
        self._adopt(self.ledger)
        if not last:
            self.learner.load(before)
            self._keep()

    def _end(self, share: float, total: int, curve: list[dict[str, Any]]) -> dict[str, Any]:
        """What is told of an end, with its loss on the test data, which is charged as well."""
        test = self._measure("test")
        return {
            "share": share, "steps": total, "validation": curve[-1]["loss"], "test": test["loss"],
            "accuracy": test["accuracy"], "flops": dict(self.charged.flops),
            "seconds": {kind: round(spent, 3) for kind, spent in self.charged.seconds.items()},
            "curve": curve,
        }  # fmt: skip

    def _keep(self) -> None:
        """Write the state, atomically."""
        self.kept_at = time.monotonic()
        if not self.learner.resumable:
            return
        state = {
            "totals": self.totals, "step": self.step, "curve": self.curve, "ends": self.ends,
            "ledger": asdict(self.ledger), "known": self.counted.known, "learner": self.learner.state(),
        }  # fmt: skip
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.file)

    def _resume(self) -> None:
        state = torch.load(self.file, weights_only=True)
        if state["totals"] != self.totals:
            raise ValueError(
                f"{self.file} is of another protocol ({state['totals']} steps, not {self.totals}): remove it"
            )
        self.learner.load(state["learner"])
        for kind in ("flops", "seconds"):
            getattr(self.ledger, kind).update(state["ledger"][kind])
        self.step, self.curve, self.ends = state["step"], state["curve"], state["ends"]
        self.counted.known.update(state["known"])
        self.say(f"{self.run.name}: goes on at step {self.step} of {self.totals[-1]}")
