"""What a growth remembers from step to step, and in a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fxgraft.explore._price import Pace

WAITING, EXPLORING, TRYING, FADING, DONE = "waiting", "exploring", "trying", "fading", "done"


@dataclass
class GrowthState:
    """What `SeedManager.autogrow` remembers between steps, in JSON types.

    Attributes:
        phase: ``"waiting"`` for the loss to be flat, ``"exploring"`` candidates, ``"trying"`` the best one,
            ``"fading"`` it out where it did not help, or ``"done"``.
        parameters, flops: of the host before it grew; the FLOPs of a forward pass, None where unknown.
        seed: the name of the seed that is tried, or that fades.
        row: its row in the exploration, as a dictionary.
        held_since: the step at which its blend had ended; None before.
        gains: its contributions, measured since.
        losses: the losses with it, measured at the same time.
        fired: how many of the steps at which growth was asked for have passed.
        count: how many steps the window that is open has had.
        given: in how many of them a loss was given.
        finite, total: how many of these losses were finite, and their sum.
        before: the mean loss of the window before; None in the first one, and where that is not finite.
        unpaid: how many changes in a row did not help.
        failed: what they were, as commands: it is not tried again until something else was kept.
        stopped: whether the user has stopped the growth.
        bare, grown: FLOPs of a forward pass, at the last exploration and after the last change.
        memory, values: bytes, see `fxgraft.explore._memory`: of the host before it grew, and of the values
            that what was kept keeps for the backward pass.
        first, last: the loss that the evaluation gave before it grew, and after the last change.
        explored, tried: FLOPs at the shape of the example call, see `fxgraft.explore._cost`.
        batch: how many times the example's elements a training step has; None where it is unknown.
        evaluation: FLOPs of one evaluation; None where they are unknown.
        evaluated, evaluations: FLOPs of all evaluations, and how many there were.
        unknown: whether something was tried whose FLOPs are not known.
        pace: how fast the loss falls, see `Pace`.
        history: the changes made, see `AutoGrowth.history`.
    """

    phase: str = WAITING
    parameters: int = 0
    flops: int | None = None
    seed: str | None = None
    row: dict[str, Any] | None = None
    held_since: int | None = None
    gains: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    fired: int = 0
    count: int = 0
    given: int = 0
    finite: int = 0
    total: float = 0.0
    before: float | None = None
    unpaid: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False
    bare: int | None = None
    grown: int | None = None
    memory: int = 0
    values: int = 0
    first: float | None = None
    last: float | None = None
    explored: int = 0
    tried: int = 0
    batch: float | None = None
    evaluation: int | None = None
    evaluated: int = 0
    evaluations: int = 0
    unknown: bool = False
    pace: dict[str, Any] = field(default_factory=lambda: asdict(Pace()))
    history: list[dict[str, Any]] = field(default_factory=list)
