"""The rounds of an automatic growth: their commands, their history, and what follows one."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from fxgraft.commands import Command, Reply
from fxgraft.explore._clock import Clock
from fxgraft.explore._growth_state import DONE, WAITING, GrowthState
from fxgraft.explore.growth_settings import GrowthSettings
from fxgraft.explore.measuring import Evaluate, evaluate_host
from fxgraft.explore.table import Row
from fxgraft.telemetry.events import logger

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager

OF_THE_TRIAL = ("kept", "widened", "dropped", "deepening")
"""Notes that are about the candidate on trial, where they name no other."""

STAYED = ("kept", "widened")
"""Notes of what is a part of the host from then on."""


class Rounds:
    """What the parts of a growth share.

    Attributes:
        manager: of the host.
        evaluate: as of `SeedManager.autogrow`.
        settings: for how long each part goes on.
        clock: knows when the next round is due.
        memory: what the growth remembers.
    """

    def __init__(
        self,
        manager: SeedManager,
        evaluate: Evaluate,
        settings: GrowthSettings,
        clock: Clock,
        memory: GrowthState,
    ):
        self.manager, self.evaluate, self.settings = manager, evaluate, settings
        self.clock, self.memory = clock, memory

    def carry_out(self, command: Command) -> Reply:
        """Carry out a command; warn where it is refused."""
        reply = self.manager.carry_out(command)
        if reply.refused:
            logger.warning("autogrow: %s was refused: %s", type(command).__name__, reply.reason)
        return reply

    def note(
        self, what: str, row: Row | None = None, *, contribution: float | None = None, reason: str = ""
    ) -> None:
        """Write a line of the history, about the candidate of ``row`` or, without it, the one on trial."""
        tried = self.memory.row if what in OF_THE_TRIAL else None
        known = (row.to_dict() if row is not None else tried) or {}
        entry = {name: known.get(name) for name in ("slot", "blueprint", "parameters")}
        gained = contribution if contribution is not None or row is None else row.contribution
        self.memory.history.append(
            {
                "step": self.manager.steps,
                "what": what,
                **entry,
                "seed": self.memory.seed if known else None,
                "contribution": gained,
                "reason": reason,
            }
        )

    @property
    def parameters(self) -> int:
        """How many the host has now, without seeds."""
        return sum(parameter.numel() for parameter in self.manager.host.host_parameters())

    def kept(self) -> None:
        """Something stays: count the host's FLOPs, for the summary, and wait for the next round."""
        looked = evaluate_host(self.manager.host, self.evaluate)
        self.memory.grown, self.memory.last = looked.flops, statistics.fmean(looked.losses)
        self.memory.evaluation = looked.evaluation or self.memory.evaluation
        self.memory.unpaid = 0
        self.memory.failed.clear()
        self._wait()

    def not_paid(self) -> None:
        """A round brought nothing. Several in a row end the growth, unless their moments were given."""
        if self.memory.stopped:
            return self.end("it was stopped")
        self.memory.unpaid += 1
        if (command := (self.memory.row or {}).get("command")) is not None:
            self.memory.failed.append(command)
        more = self.clock.has_more(self.memory)
        if more or (more is None and self.memory.unpaid < self.settings.patience):
            return self._wait()
        return self.end("the last round did not pay")

    def end(self, reason: str) -> None:
        """There is no further round."""
        self.note("done", reason=reason)
        self.memory.phase = DONE

    def _wait(self) -> None:
        self.memory.phase = WAITING
        self.clock.rest(self.memory)
        if self.clock.has_more(self.memory) is False:
            self.end("all shares of the run are over")
