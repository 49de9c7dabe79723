"""The interface of controllers: the facts that they receive, the commands that they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fxgraft.commands import Command, Reply
from fxgraft.seeds.stage import Stage


@dataclass(frozen=True)
class SeedFacts:
    """The state of a seed after a training step.

    Attributes:
        stage: its `fxgraft.Stage`.
        alpha: its share in the output of its slot, 0 to 1.
        trained_steps: the number of steps in which it was in TRAINING, ran, and was updated.
        steps: the number of steps since it went live, without pauses. Default 0.
    """

    stage: Stage
    alpha: float
    trained_steps: int
    steps: int = 0


@dataclass(frozen=True)
class Facts:
    """What a controller is given after a training step.

    Attributes:
        step: the number of the step, counted from 1.
        loss: the training loss of that step.
        seeds: all seeds of the manager, by name.
        measure: a function (seed, alpha) -> the loss at alpha 0 minus the loss at ``alpha``, measured when it
            is called; NaN where the evaluation does not run the seed.
    """

    step: int
    loss: float
    seeds: Mapping[str, SeedFacts]
    measure: Callable[[str, float], float]


class Controller(Protocol):
    """Decides what to grow. Its decisions depend only on what it was given by `observe` and `hear`.

    An optional attribute ``candidates``, a sequence of ``SEED`` commands, says what it may germinate: a
    `Link` then raises before the first step for those that can never be carried out.
    """

    def observe(self, facts: Facts) -> Sequence[Command]:
        """Receive the facts of one more step; return the commands to carry out now.

        Args:
            facts: the step, its loss, and the seeds after it.
        """

    def hear(self, command: Command, reply: Reply) -> None:
        """Receive the reply to a command, before the next step.

        Args:
            command: one that `observe` returned.
            reply: whether it was carried out, and why not.
        """

    def state_dict(self) -> dict[str, Any]:
        """Its state as plain data, for the checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: as it was read from the checkpoint.
        """
