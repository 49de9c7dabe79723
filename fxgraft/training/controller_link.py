"""The link between a controller and a manager: carries facts one way and commands the other."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from fxgraft import commands
from fxgraft.commands import SEED, Command, Reply
from fxgraft.errors import StageError
from fxgraft.manager.dispatch import arguments
from fxgraft.manager.manager import SeedManager
from fxgraft.telemetry import logger
from fxgraft.training.controller import Controller, Facts, SeedFacts
from fxgraft.training.controller_log import Entry, Recorder


class Link:
    """Connects a controller with a manager.

    Args:
        manager: carries out the commands.
        controller: gives the commands.
        evaluate: returns the loss (a float) by which seeds are measured: on held-out data, in eval mode,
            without drawing from the global random stream.
        recorder: writes commands, replies and measurements to a file; None: nothing is written.

    Raises:
        SlotError, BlueprintError, ValueError: as `SeedManager.plan`, of a candidate of the controller's that
            could never be germinated.
    """

    def __init__(
        self,
        manager: SeedManager,
        controller: Controller,
        evaluate: Callable[[], float | Tensor],
        recorder: Recorder | None = None,
    ):
        self.manager = manager
        self.controller = controller
        self._evaluate = evaluate
        self._recorder = recorder
        self._refused: list[SEED] = []
        for candidate in getattr(controller, "candidates", ()):
            manager.plan(**arguments(candidate))

    def step(self, step: int, loss: float) -> None:
        """Give the controller one step's facts, carry out its commands; call it after ``manager.step()``.

        On several ranks each has a controller, all with the same facts; the commands of rank 0 count.

        Args:
            step: the number of the training step, from 1.
            loss: its training loss.
        """
        peers = self.manager.peers

        def measure(seed: str, alpha: float) -> float:
            try:
                found = self.manager.measure(seed, self._evaluate, at=alpha)
            except StageError as error:  # it does not run there: no reason to end a training run
                logger.warning("step %d: %s", self.manager.steps, error)
                found = math.nan
            self._note(Entry(step, measured=(seed, alpha, found)))
            return found

        seeds = {
            s.name: SeedFacts(s.stage, s.alpha, s.trained_steps, s.steps) for s in self.manager.seeds.values()
        }
        said = self.controller.observe(Facts(step, peers.mean(loss), seeds, measure))
        for command in map(commands.parse, peers.share([commands.to_dict(command) for command in said])):
            reply = self.manager.carry_out(command)
            self._note(Entry(step, command, reply))
            self._warn_if_refused(command, reply)
            self.controller.hear(command, reply)

    def _warn_if_refused(self, command: Command, reply: Reply) -> None:
        """Say once of each seed that was refused: a controller goes another way, and may never grow."""
        if isinstance(command, SEED) and reply.refused and command not in self._refused:
            self._refused.append(command)
            logger.warning(
                "step %d: the controller's SEED of %s at %r was refused: %s",
                self.manager.steps,
                command.blueprint,
                command.slot,
                reply.reason,
            )

    def _note(self, entry: Entry) -> None:
        if self._recorder is not None:
            self._recorder.write(entry)
