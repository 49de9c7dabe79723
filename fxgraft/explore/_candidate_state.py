"""One candidate of an exploration, and what became of it so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fxgraft import commands
from fxgraft.commands import SEED
from fxgraft.errors import CheckpointError
from fxgraft.explore._cap import Candidate
from fxgraft.explore._depths import Depth
from fxgraft.explore._widths import Width
from fxgraft.explore.measuring import Measured
from fxgraft.explore.table import FAILED, LEARNING, MEASURED, Row
from fxgraft.util import validate

KEPT = ("seed", "status", "reason", "expected", "gradient")
"""What a checkpoint says of a candidate, beside its command."""


@dataclass
class CandidateState:
    """A candidate, and what became of it so far."""

    command: SEED
    candidate: Candidate | None
    seed: str | None = None
    status: str = LEARNING
    reason: str = ""
    found: Measured = field(default_factory=Measured)
    step_cost: float | None = None
    expected: float | None = None
    gradient: float | None = None
    trained_steps: int = 0
    score: float | None = None

    @classmethod
    def of(
        cls, command: SEED, candidate: Candidate | None, *, status: str = LEARNING, reason: str = ""
    ) -> CandidateState:
        """One that begins, or that was left out for a reason."""
        return cls(command, candidate, status=status, reason=reason)

    def row(self) -> Row:
        """Its row in the table."""
        return Row(
            slot=self.command.slot,
            blueprint=self.command.blueprint if self.width is None else "widen",
            parameters=None if self.candidate is None else self.candidate.parameters,
            flops=None if self.candidate is None else self.candidate.flops,
            memory=None if self.candidate is None else self.candidate.memory,
            contribution=self.found.contribution,
            standard_error=self.found.standard_error,
            score=self.score,
            step_cost=self.step_cost,
            expected=self.expected,
            gradient=self.gradient,
            trained_steps=self.trained_steps,
            status=self.status,
            reason=self.reason,
            seed=self.seed,
            command=self.command if self.candidate is None else self.candidate.grows,
            widens=None if self.width is None else (self.width.group, self.width.by),
            loss=self.found.loss,
            deepens=None if self.depth is None else (self.depth.stack, self.depth.at),
        )

    @property
    def depth(self) -> Depth | None:
        return None if self.candidate is None else self.candidate.depth

    @property
    def width(self) -> Width | None:
        return None if self.candidate is None else self.candidate.width

    def fail(self, reason: str) -> None:
        self.status, self.reason = FAILED, reason

    def state(self) -> dict[str, Any]:
        """Its state for a checkpoint."""
        width = None if self.width is None else dataclasses.asdict(self.width)
        kept = {name: getattr(self, name) for name in KEPT}
        return {"command": commands.to_dict(self.command), "width": width, **kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned. Raises `CheckpointError` where it was another candidate."""
        if commands.to_dict(self.command) != state["command"]:
            raise CheckpointError(
                f"the exploration was one of other candidates: {state['command']}. Call explore with the "
                f"arguments of the saved run"
            )
        validate.one_of("status", state["status"], (LEARNING, MEASURED, FAILED))
        for name in KEPT:
            setattr(self, name, state[name])
        if state["width"] is not None and self.candidate is not None:  # it is given as a branch
            width = Width(**state["width"])
            self.candidate = replace(self.candidate, parameters=width.parameters, width=width)


def restore(
    entries: Sequence[CandidateState], saved: Sequence[Mapping[str, Any]], seeds: Collection[str]
) -> None:
    """Restore what they returned as their states; those that learn have a seed among ``seeds``.

    Raises:
        CheckpointError: there are other candidates, or a seed is not there.
        LookupError, TypeError, ValueError: a state is damaged.
    """
    if len(saved) != len(entries):
        raise ValueError(f"it has {len(saved)} candidates; expected {len(entries)}")
    for entry, state in zip(entries, saved, strict=True):
        entry.restore(state)
        if entry.status == LEARNING and entry.seed not in seeds:
            raise CheckpointError(
                f"the exploration's seed {entry.seed!r} is not in the checkpoint. Load the run that "
                f"manager.save wrote, before this"
            )
