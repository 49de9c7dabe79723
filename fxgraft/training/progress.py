"""Where a run is, beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fxgraft.controllers import Controller


@dataclass(frozen=True)
class EpochReport:
    """What an epoch came to: mean training loss, loss on held-out data (None where there is none)."""

    epoch: int
    steps: int
    loss: float
    validation: float | None


class Progress:
    """How far the loop is, the loss scale, and what the controller remembers.

    A manager saves whatever stands among its schedulers by this protocol, so this one stands there
    too: one file then holds the whole run, and cannot be half of one moment and half of another.

    Attributes:
        step: training steps made, those that were rolled back included.
        epoch, batch: epochs that are over, and batches made of the one that is not.
    """

    def __init__(self, scaler: torch.amp.GradScaler, controller: Controller | None = None):
        self.step = 0
        self.epoch = 0
        self.batch = 0
        self._scaler = scaler
        self._controller = controller

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "scaler": self._scaler.state_dict(),
            "controller": self._controller.state_dict() if self._controller else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be where `state_dict` was."""
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        if state["scaler"]:  # empty where no loss is scaled
            self._scaler.load_state_dict(state["scaler"])
        if self._controller is not None and state["controller"] is not None:
            self._controller.load_state_dict(state["controller"])
