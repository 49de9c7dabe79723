"""A run that is given FLOPs and not steps, since its size is not known before; they include everything.

Each end is a run of its own from the beginning; a run that was killed keeps the ends that it has reached.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.worth import schedule
from benchmarks.worth.costs import Counted, Ledger
from benchmarks.worth.learners import KINDS
from benchmarks.worth.protocols import LARGE
from benchmarks.worth.training import Trainer

MARGIN = 1.05  # of a forward pass over what `Learner.forwards` says, which it is but for the first layer


class BudgetedTrainer(Trainer):
    """Carries one run of an arm whose ends are multiples of C, the FLOPs of the large network's N steps."""

    def train(self) -> dict[str, Any]:
        """Run to all ends."""
        file = self.file.with_suffix(".json")
        if file.exists():
            self.ends = json.loads(file.read_text(encoding="utf-8"))
        for share in self.shares[len(self.ends) :]:
            self.ends.append(self._alone(self.length * share))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self.ends), encoding="utf-8")
        file.unlink(missing_ok=True)
        return self._record([])

    def _alone(self, share: float) -> dict[str, Any]:
        """One run, from its first step to this end."""
        self.limit = share * self.workload.scale.steps * self.workload.step_flops(LARGE)
        self.warm = schedule.warm_up(self.workload.steps_for(self.arm.depth, share))
        self.ledger, self.counted, self.step = Ledger(), Counted(), 0
        with self.ledger.time("change"):
            self.learner = KINDS[self.arm.how](self.setting)
        self._adopt(self.ledger)
        self.learner.allow(self.limit)
        curve: list[dict[str, Any]] = []
        while self._may_step():
            self._train_step(self.step, self._rate())
            self.step += 1
            if self.ledger.total_flops >= self.limit * (len(curve) + 1) / self.workload.scale.points:
                curve.append(self._point(self.step, curve) | {"blocks": self.learner.blocks})
        curve.append(self._point(self.step, curve) | {"blocks": self.learner.blocks})
        return self._end(share, self.step, curve) | self.learner.told()

    def _may_step(self) -> bool:
        """Whether the budget has room for one more step, and for the last evaluations behind it."""
        step = self._step_flops()
        return step is None or self.ledger.total_flops + step + self._reserve(step) <= self.limit

    def _step_flops(self) -> int | None:
        return self.counted.known.get(("train", self.learner.structure()))

    def _reserve(self, step: int) -> float:
        scale = self.workload.scale
        return MARGIN * step / self.learner.forwards * (scale.validation + scale.test) / scale.batch

    def _rate(self) -> float:
        """1 until the decay begins, then on a line to 0 where the last step is."""
        step, spent = self._step_flops(), self.ledger.total_flops
        end, start = self.limit - self._reserve(step or 0), (1 - schedule.DECAY) * self.limit
        if spent >= start:
            return max(0.0, (end - spent) / (end - start))
        return schedule.constant(self.step, self.warm)
