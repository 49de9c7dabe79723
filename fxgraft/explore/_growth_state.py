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
        gains: what was measured of it since.
        fired: how many of the steps at which growth was asked for have passed.
        count, total: of the losses in the window that is open: how many, and their sum.
        before: the mean loss of the window before; None in the first one.
        unpaid: how many changes in a row did not help.
        stopped: whether the user has stopped the growth.
        bare, grown: FLOPs of a forward pass, at the last exploration and after the last change.
        pace: how fast the loss falls, see `Pace`.
        history: the changes made, see `Growth.history`.
    """

    phase: str = WAITING
    parameters: int = 0
    flops: int | None = None
    seed: str | None = None
    row: dict[str, Any] | None = None
    held_since: int | None = None
    gains: list[float] = field(default_factory=list)
    fired: int = 0
    count: int = 0
    total: float = 0.0
    before: float | None = None
    unpaid: int = 0
    stopped: bool = False
    bare: int | None = None
    grown: int | None = None
    pace: dict[str, Any] = field(default_factory=lambda: asdict(Pace()))
    history: list[dict[str, Any]] = field(default_factory=list)
