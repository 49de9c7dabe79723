"""One candidate of an exploration, and what became of it so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxgraft import commands
from fxgraft.commands import DEEPEN, SEED, WIDEN
from fxgraft.errors import CheckpointError
from fxgraft.explore._cap import Candidate
from fxgraft.explore._depths import Depth
from fxgraft.explore.measuring import Measured
from fxgraft.explore.table import FAILED, LEARNING, Row

KEPT = ("seed", "status", "reason", "expected", "gradient", "widens")
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
    widens: tuple[str, int] | None = None

    @classmethod
    def of(
        cls, command: SEED, candidate: Candidate | None, *, status: str = LEARNING, reason: str = ""
    ) -> CandidateState:
        """One that begins, or that was left out for a reason."""
        width = None if candidate is None else candidate.width
        widens = None if width is None else (width.group, width.by)
        return cls(command, candidate, status=status, reason=reason, widens=widens)

    def row(self) -> Row:
        """What is told of it."""
        return Row(
            slot=self.command.slot,
            blueprint=self.command.blueprint if self.widens is None else "widen",
            parameters=None if self.candidate is None else self.candidate.parameters,
            flops=None if self.candidate is None or self.depth is not None else self.candidate.flops,
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
            command=self._grows,
            widens=self.widens,
            deepens=None if self.depth is None else (self.depth.stack, self.depth.at),
        )

    @property
    def _grows(self) -> SEED | WIDEN | DEEPEN:
        if self.widens is not None:
            return WIDEN(group=self.widens[0], by=self.widens[1])
        if self.depth is not None:
            return DEEPEN(stack=self.depth.stack, at=[self.depth.at])
        return self.command

    @property
    def depth(self) -> Depth | None:
        return None if self.candidate is None else self.candidate.depth

    def fail(self, reason: str) -> None:
        self.status, self.reason = FAILED, reason

    def state(self) -> dict[str, Any]:
        """Its state for a checkpoint."""
        return {"command": commands.to_dict(self.command), **{name: getattr(self, name) for name in KEPT}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned. Raises `CheckpointError` where it was another candidate."""
        if commands.to_dict(self.command) != state["command"]:
            raise CheckpointError(
                f"the exploration was one of other candidates: {state['command']}. Call explore with the "
                f"arguments of the saved run"
            )
        for name in KEPT:
            setattr(self, name, state[name])
