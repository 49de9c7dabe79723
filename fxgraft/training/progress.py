"""Where a run is, beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fxgraft.training.controller import Controller
from fxgraft.training.watchdog import Watchdog


@dataclass(frozen=True)
class EpochReport:
    """The result of an epoch: mean training loss, and loss on held-out data (None without such data).

    Attributes:
        epoch: its number, from 0.
        steps: the number of training steps made in it by this object.
        loss: the mean training loss; NaN without steps.
        validation: the loss on held-out data, or None.
    """

    epoch: int
    steps: int
    loss: float
    validation: float | None


class Progress:
    """The progress of the loop, the loss scale, and the states of the controller and the watchdog.

    It has the methods of a scheduler, and is saved by the manager with the schedulers. So one file has the
    whole run, at one moment.

    Args:
        scaler: the loss scaler of the loop.
        controller: its controller. Default None: there is none.
        watchdog: what judges its losses. Default None: nothing does.

    Attributes:
        step: the number of training steps, those that were rolled back included.
        epoch, batch: the number of finished epochs, and of batches made of the present one.
    """

    def __init__(
        self,
        scaler: torch.amp.GradScaler,
        controller: Controller | None = None,
        watchdog: Watchdog | None = None,
    ):
        self.step = 0
        self.epoch = 0
        self.batch = 0
        self._scaler = scaler
        self._controller = controller
        self._watchdog = watchdog

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "scaler": self._scaler.state_dict(),
            "controller": self._controller.state_dict() if self._controller else None,
            "watchdog": self._watchdog.state_dict() if self._watchdog else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: as it was read from the checkpoint.
        """
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        if state["scaler"]:  # empty where no loss is scaled
            self._scaler.load_state_dict(state["scaler"])
        if self._controller is not None and state["controller"] is not None:
            self._controller.load_state_dict(state["controller"])
        # A rollback keeps it, as it keeps the position; files of before have none.
        if self._watchdog is not None and (seen := state.get("watchdog")) is not None:
            self._watchdog.load_state_dict(seen)
