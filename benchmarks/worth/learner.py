"""A network in training that can change its size: what all kinds have in common.

A change draws from torch's global random stream, which is seeded before it by random seed and change: a run
that was killed makes the same changes again on untrained networks, then loads its state into the result.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.worth.arm import Arm
from benchmarks.worth.costs import Counted, Ledger
from benchmarks.worth.data import Batch
from benchmarks.worth.workloads import Workload, loss_of


@dataclass(frozen=True)
class Setting:
    """What a learner is made for."""

    workload: Workload
    arm: Arm
    seed: int
    rate: float
    unit: int  # N, the steps that the arm's shares are of


class LibraryError(Exception):
    """An arm needs a library that is not installed; the message says how to install it."""


class Learner:
    """A plain network of one size.

    Attributes:
        model: what is trained and evaluated.
        optimizers: of its parameters; one, but for Muon.
        changed: how many of the arm's changes were made.
        resumable: whether a run that was killed goes on; else it begins anew.
        budgeted: whether it is given FLOPs, and not steps.
        forwards: a training step costs at least as much as so many forward passes, nearly.
    """

    resumable = True
    budgeted = False
    forwards = 3

    def __init__(self, setting: Setting):
        self.setting, self.changed = setting, 0
        self.ledger, self.counted = Ledger(), Counted()  # the run's own take their place
        torch.manual_seed(setting.seed)
        self.make(setting.workload.make(setting.arm.depth, **self.sizes))

    @property
    def sizes(self) -> dict[str, int]:
        """Further arguments of the network."""
        return {key: value for key, value in self.setting.arm.options.items() if key == "hidden"}

    def make(self, model: nn.Module) -> None:
        """Take up a new network."""
        self.model = model
        kind = self.setting.arm.options.get("optimizer", "adamw")
        self.optimizers = self.setting.workload.optimizers(model, self.setting.rate, kind)

    def begin(self, step: int) -> None:
        """Before a step: make the changes that are due."""
        changes = self.setting.arm.changes
        while self.changed < len(changes) and self.is_due(changes[self.changed][0], step):
            self.counted.run(self.ledger, "change", None, self.change)

    def allow(self, limit: float) -> None:
        """A run with so many FLOPs begins, where that is what it is given."""
        self.limit = limit

    def is_due(self, share: float, step: int) -> bool:
        """Whether a change at that share of the run, or of its budget, is to be made before this step."""
        if self.budgeted:
            return self.ledger.total_flops >= share * self.limit
        return step >= round(share * self.setting.unit)

    def change(self) -> None:
        """Make the next change."""
        torch.manual_seed(self.setting.seed * 1000 + self.changed + 1)
        self.grow(self.setting.arm.changes[self.changed][1])
        self.changed += 1

    def grow(self, depth: int) -> None:
        """Become that deep."""
        raise NotImplementedError(f"{self.setting.arm.name} has a fixed size")

    def structure(self) -> Hashable:
        """What the FLOPs of a step depend on."""
        return self.changed

    def step(self, batch: Batch, share: float) -> float:
        """One training step at ``share`` of the learning rate; the loss before it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * self.setting.rate
            optimizer.zero_grad()
        loss = loss_of(self.model, batch)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return float(loss.detach())

    def finish(self, loss: float) -> None:
        """At the end of a step; charges for itself."""

    def state(self) -> dict[str, Any]:
        """A copy of everything that training changes."""
        kept = {
            "model": self.model.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
        }
        return copy.deepcopy(kept) | {"changed": self.changed}

    def load(self, state: dict[str, Any]) -> None:
        """Go back, or forward, to that state; of another learner as well."""
        while self.changed < state["changed"]:
            self.change()
        assert self.changed == state["changed"], "a run cannot shrink"
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(copy.deepcopy(kept))


class ByBudget(Learner):
    """The arm's changes are due at shares of a budget of FLOPs."""

    resumable = False  # a run with a budget begins anew
    budgeted = True

    @property
    def blocks(self) -> int:
        """How many there are now; of a workload whose depth stands for its width, that."""
        return self.setting.arm.changes[self.changed - 1][1] if self.changed else self.setting.arm.depth

    def told(self) -> dict[str, Any]:
        """What it did, for the record of an end."""
        return {"blocks": self.blocks}
