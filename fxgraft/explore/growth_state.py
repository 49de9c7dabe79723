"""What a growth remembers from step to step, and in a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fxgraft.explore.price import Pace

WAITING, EXPLORING, TRYING, FADING, DONE = "waiting", "exploring", "trying", "fading", "done"


@dataclass
class GrowthState:
    """What a growth remembers, in JSON types."""

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
