"""When it is time to grow: at shares of the run, when a function says so, or when the loss is flat."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING

from torch import Tensor

from fxgraft.explore._growth_state import GrowthState
from fxgraft.explore._price import Pace
from fxgraft.explore.measuring import Evaluate, check
from fxgraft.explore.terms import STEPS, Course, When, moments

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager


class Clock:
    """Sums up the losses of a run; what it has to remember is in a `GrowthState`.

    Args:
        manager: of the run.
        evaluate: tells the loss where the steps do not.
        course: how long a window is, and what is flat.
        when, total_steps: as of `SeedManager.autogrow`.
    """

    def __init__(
        self, manager: SeedManager, evaluate: Evaluate, course: Course, when: When, total_steps: int | None
    ):
        self._manager, self._evaluate, self._course = manager, evaluate, course
        self._shares, self._ask = moments(when, total_steps)
        self.begin(GrowthState())

    def begin(self, memory: GrowthState) -> None:
        """Go on from there."""
        self._losses: list[Tensor | float] = []
        self._pace, self._paced = Pace(**memory.pace), list[Tensor | float]()

    def settle(self, memory: GrowthState) -> None:
        """Write what was summed up so far into the memory."""
        memory.total += sum(map(float, self._losses))
        self._losses.clear()
        memory.pace = asdict(self.pace())

    def rest(self, memory: GrowthState) -> None:
        """Forget what was before: the next window begins."""
        memory.before, memory.count, memory.total = None, 0, 0.0
        self._losses.clear()

    def has_more(self, memory: GrowthState) -> bool | None:
        """Whether there are shares of the run to come; None where it is not by shares."""
        return None if self._shares is None else memory.fired < len(self._shares)

    def see(self, loss: float | Tensor | None) -> None:
        """One step more, whatever the growth does. Raises `ValueError` where a loss is needed."""
        if self._course.gain != STEPS:
            return
        if loss is None:
            raise ValueError('autogrow(gain="steps") needs the training loss: expected manager.step(loss)')
        self._paced.append(loss.detach().mean() if isinstance(loss, Tensor) else loss)
        if len(self._paced) >= self._course.window:  # one wait for a device, not one in each step
            self.pace()

    def pace(self) -> Pace:
        """How fast the loss falls."""
        for loss in map(float, self._paced):
            self._pace.add(loss)
        self._paced.clear()
        return self._pace

    def is_time(self, memory: GrowthState, loss: float | Tensor | None) -> bool:
        """Whether the next round begins with this step."""
        if self._shares is not None:
            if memory.fired < len(self._shares) and self._manager.steps >= self._shares[memory.fired]:
                memory.fired += 1
                return True
            return False
        if self._ask is not None:
            return bool(self._manager.peers.share(bool(self._ask(self._manager))))
        return self._is_flat(memory, loss)

    def _is_flat(self, memory: GrowthState, loss: float | Tensor | None) -> bool:
        memory.count += 1
        if loss is not None:
            self._losses.append(loss.detach().mean() if isinstance(loss, Tensor) else loss)
        if memory.count < self._course.window:
            return False
        given = memory.total + sum(map(float, self._losses))
        # Without a loss in each step the evaluation tells.
        if self._losses or memory.total:
            now = given / memory.count
        else:
            now = statistics.fmean(check(self._manager.host, self._evaluate).losses)
        now, before = self._manager.peers.mean(now), memory.before
        self._losses.clear()
        memory.count, memory.total, memory.before = 0, 0.0, now
        return before is not None and before - now < self._course.flat * abs(before)
