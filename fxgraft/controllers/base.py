"""What a controller is told, and what it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fxgraft.commands import Command, Reply
from fxgraft.seeds.stage import Stage


@dataclass(frozen=True)
class SeedFacts:
    """A seed as it stands after a step.

    Attributes:
        stage, alpha, trained_steps, steps: as of the `Seed`.
    """

    stage: Stage
    alpha: float
    trained_steps: int
    steps: int = 0


@dataclass(frozen=True)
class Facts:
    """What there is to know after a training step.

    Attributes:
        step: the number of the step, from 1.
        loss: the training loss of that step.
        seeds: all seeds of the manager, by name.
        measure: (seed, alpha) -> the loss at alpha 0 minus that at ``alpha``, measured on the spot; NaN
            where the evaluation does not run the seed.
    """

    step: int
    loss: float
    seeds: Mapping[str, SeedFacts]
    measure: Callable[[str, float], float]


class Controller(Protocol):
    """Decides what to grow. What it decides is a function of what it has observed and heard.

    One that knows beforehand what it may germinate has it in an attribute ``candidates``, a sequence of
    ``SEED`` commands: a `Link` refuses those that can never be carried out before the first step.
    """

    def observe(self, facts: Facts) -> Sequence[Command]:
        """Take in one more step; say what is to be done now."""

    def hear(self, command: Command, reply: Reply) -> None:
        """Learn what became of a command, before the next step."""

    def state_dict(self) -> dict[str, Any]:
        """Everything it remembers, as plain data: a checkpoint holds it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` said."""
