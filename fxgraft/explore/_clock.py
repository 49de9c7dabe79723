"""When to grow: at shares of the run, when a function says so, or when the loss is flat."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING

from torch import Tensor

from fxgraft.explore._growth_state import GrowthState
from fxgraft.explore._price import Pace
from fxgraft.explore.growth_settings import STEPS, GrowthSettings, When, moments
from fxgraft.explore.measuring import Checked, Evaluate, evaluate_host
from fxgraft.util.losses import mean_loss

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager


class Clock:
    """Sums up the losses of a run; what it has to remember is in a `GrowthState`.

    Args:
        manager: of the run.
        evaluate: computes the loss where the steps have none.
        settings: how long a window is, and what is flat.
        when, total_steps: as of `SeedManager.autogrow`.

    Attributes:
        looked: what the evaluation said in the latest step, where it was asked then; else None.
    """

    def __init__(
        self,
        manager: SeedManager,
        evaluate: Evaluate,
        settings: GrowthSettings,
        when: When,
        total_steps: int | None,
    ):
        self._manager, self._evaluate, self._settings = manager, evaluate, settings
        self._shares, self._ask = moments(when, total_steps)
        self.begin(GrowthState())

    def begin(self, memory: GrowthState) -> None:
        """Go on from there."""
        self.looked: Checked | None = None
        self._losses: list[Tensor | float] = []
        self._pace, self._paced = Pace(**memory.pace), list[Tensor | float]()

    def settle(self, memory: GrowthState) -> None:
        """Write what was summed up so far into the memory."""
        self._sum_up(memory)
        memory.pace = asdict(self.pace())

    def rest(self, memory: GrowthState) -> None:
        """Forget what was before: the next window begins."""
        memory.before = None
        self._open_window(memory)

    def _open_window(self, memory: GrowthState) -> None:
        memory.count, memory.given, memory.finite, memory.total = 0, 0, 0, 0.0
        self._losses.clear()

    def _sum_up(self, memory: GrowthState) -> None:
        """Add up the losses that wait. One that is not finite (a step that a scaler skips) says nothing."""
        finite = [loss for loss in map(float, self._losses) if math.isfinite(loss)]
        memory.given, memory.finite = memory.given + len(self._losses), memory.finite + len(finite)
        memory.total += sum(finite)
        self._losses.clear()

    def has_more(self, memory: GrowthState) -> bool | None:
        """Whether there are shares of the run to come; None where it is not by shares."""
        return None if self._shares is None else memory.fired < len(self._shares)

    def see(self, loss: float | Tensor | None) -> None:
        """One step more, whatever the growth does. Raises `ValueError` where a loss is needed."""
        if self._settings.gain != STEPS:
            return
        if loss is None:
            raise ValueError('autogrow(gain="steps") needs the training loss: expected manager.step(loss)')
        self._paced.append(mean_loss(loss))
        if len(self._paced) >= self._settings.window:  # one wait for a device, not one in each step
            self.pace()

    def pace(self) -> Pace:
        """How fast the loss falls."""
        for loss in map(float, self._paced):
            self._pace.add(loss)
        self._paced.clear()
        return self._pace

    def is_time(self, memory: GrowthState, loss: float | Tensor | None) -> bool:
        """Whether the next round begins with this step."""
        self.looked = None
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
            self._losses.append(mean_loss(loss))
        if memory.count < self._settings.window:
            return False
        self._sum_up(memory)
        now, before = self._manager.peers.mean(self._mean(memory)), memory.before
        self._open_window(memory)
        memory.before = now if math.isfinite(now) else None
        return before is not None and math.isfinite(now) and before - now < self._settings.flat * abs(before)

    def _mean(self, memory: GrowthState) -> float:
        """The mean loss of the window; where no step had a loss, that of the evaluation. NaN: neither."""
        if memory.given:
            return memory.total / memory.finite if memory.finite else math.nan
        self.looked = evaluate_host(self._manager.host, self._evaluate)
        return statistics.fmean(self.looked.losses)
