"""A seed: the record of one grafted module's life. Only the manager changes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fxgraft.schedules import Ramp
from fxgraft.stage import Stage
from fxgraft_passes import Graft, GraftSpec


@dataclass(eq=False)
class Seed:
    """One grafted module.

    Attributes:
        name: unique for the life of the manager.
        slot: the slot's name.
        blueprint: what it was germinated from.
        spec: mode, objective, isolation.
        stage: where it is in its life.
        alpha: its share in the slot's output.
    """

    name: str
    slot: str
    blueprint: str
    spec: GraftSpec
    stage: Stage = Stage.DORMANT
    alpha: float = 0.0
    _graft: Graft | None = None
    _ramp: Ramp | None = None
    _ramp_step: int = 0

    @property
    def module(self) -> nn.Module | None:
        """The module itself; None before it is live and after it was culled."""
        return self._graft.module if self._graft else None

    @property
    def target(self) -> float | None:
        """Where alpha goes; None before the first blend."""
        return self._ramp.target if self._ramp else None

    @property
    def is_live(self) -> bool:
        """Whether it is grafted and not yet a plain part of the host."""
        return self.stage in (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)

    def set_alpha(self, alpha: float) -> None:
        """Set the share, in place: nothing recompiles."""
        self.alpha = alpha
        if self._graft:
            self._graft.alpha.fill_(alpha)

    def enter(self, stage: Stage) -> None:
        """Set the stage, and the flags by which the blend operators know it."""
        self.stage = stage
        if self._graft:
            self._graft.learning.fill_(stage is Stage.TRAINING)
            self._graft.released.fill_(stage is Stage.HOLDING)

    def advance(self) -> bool:
        """One step along the ramp; return whether the target is reached."""
        if self._ramp is None:
            return False
        self.set_alpha(self._ramp.alpha(self._ramp_step + 1))  # first: a schedule may raise
        self._ramp_step += 1
        return self._ramp_step >= self._ramp.steps

    def __repr__(self) -> str:
        return f"Seed({self.name!r} at {self.slot!r}, {self.stage.name}, alpha={self.alpha:g})"
