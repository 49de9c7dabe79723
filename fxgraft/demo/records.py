"""What a run leaves behind, and what it shows while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fxgraft.demo.controller import Action


@dataclass(frozen=True)
class SeedRecord:
    """One seed of one run, at the end of it."""

    name: str
    slot: str
    blueprint: str
    stage: str
    contribution: float


@dataclass
class Record:
    """What one arm did with one random seed.

    Attributes:
        losses: of every training step.
        step_ms: of every training step with the controller's work; ``train_ms`` without it.
        flops: of the training steps. ``decision_flops``: of the controller's trials and measurements.
        curve: (step, held-out loss, held-out accuracy).
        script: (step, action) of the controller, in order.
        alphas: seed -> (step, alpha).
    """

    arm: str
    random_seed: int
    losses: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    train_ms: list[float] = field(default_factory=list)
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    script: list[tuple[int, Action]] = field(default_factory=list)
    alphas: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    seeds: list[SeedRecord] = field(default_factory=list)
    accuracy: float = 0.0
    parameters: int = 0
    flops: int = 0
    decision_flops: int = 0
    inference_flops: int = 0
    compiles: int = 0
    recompiles_on_alpha: int = 0
    isolation_violations: int = 0
    isolation_compared: int = 0


@dataclass(frozen=True)
class SeedRow:
    """What the table of seeds shows of one."""

    name: str
    slot: str
    stage: str
    alpha: float
    contribution: float | None
    gradient_ratio: float | None


class Watcher(Protocol):
    """Who looks on."""

    def step(self, record: Record, done: int, seeds: Sequence[SeedRow]) -> None:
        """After a training step."""

    def acted(self, record: Record, step: int, action: Action) -> None:
        """After an action of the controller."""
