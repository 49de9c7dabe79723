"""Growth in width by gromo, which computes new neurons from the gradients that the network lacks.

Its linear algebra (`eigh`, `svd`, `solve`) is not known to the flop counter, and so not charged; its passes
over data and its matrix products are.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
from torch import nn

from benchmarks.worth.data import Batch
from benchmarks.worth.learner import ByBudget, LibraryError
from benchmarks.worth.models import MLP

VERSION = "0.1.0"
SCALES = (0.1, 0.5, 1.0)
"""What gromo's tutorial tries; without 0, with which the new neurons would never learn."""
OFFSET = 7919  # of the random seed of its data, which are of no training step


class ByGromo(ByBudget):
    """To given widths at given shares of the budget, as gromo's tutorial does it.

    For one hidden layer after the other: statistics over ``batches`` batches, the best new neurons, the best
    scale for them on the same data. One such growth adds at most as many neurons as the next layer has
    outputs, so that it is repeated until the width is reached. The arm's other options: ``delta``, whether
    the weights that are there take a natural-gradient step as well; ``state``, whether the optimizer keeps
    its state of them, or begins anew as in the tutorial; ``factor``, as of `ByShares`; ``charged``, whether
    its computations are a part of the budget.
    """

    forwards = 2  # as of `Wider`
    factor = 1.0

    def make(self, model: nn.Module) -> None:
        super().make(growing(model) if isinstance(model, MLP) else model)

    def begin(self, step: int) -> None:
        super().begin(step)
        if not self.setting.arm.options["charged"]:
            self.ledger.flops["change"] = 0

    def grow(self, depth: int) -> None:
        before = list(self.model.parameters())
        for at in range(len(MLP.hidden)):
            while missing := MLP.unit * depth - self.model.layers[at].out_features:
                self.add(at, missing)
        old = self.optimizers[0].state
        self.make(self.model)
        if self.setting.arm.options["state"]:
            for was, now in zip(before, self.model.parameters(), strict=True):
                self.optimizers[0].state[now] = {key: _enlarged(of, now) for key, of in old[was].items()}
        self.factor *= self.setting.arm.options["factor"]

    def step(self, batch: Batch, share: float) -> float:
        return super().step(batch, share * self.factor)

    def add(self, at: int, most: int) -> None:
        """At most so many neurons to a hidden layer."""
        from gromo.utils.training_utils import compute_statistics, evaluate_model

        options, net = self.setting.arm.options, self.model
        data = self.data(options["batches"])
        net.set_growing_layers(index=at)
        compute_statistics(net, data, loss_function=nn.CrossEntropyLoss(reduction="sum"))
        net.compute_optimal_updates(maximum_added_neurons=most, compute_delta=options["delta"])
        net.reset_computation()
        net.layers[at].store_input = False
        net.dummy_select_update()
        losses = {}
        for scale in SCALES:
            net.set_scaling_factor(scale)
            losses[scale], _ = evaluate_model(net, data, nn.CrossEntropyLoss(), use_extended_model=True)
        net.set_scaling_factor(min(losses, key=lambda scale: losses[scale]))
        net.apply_change()
        net.train()

    def data(self, count: int) -> list[Batch]:
        """Batches for one growth."""
        seed, width = self.setting.seed + OFFSET, sum(layer.out_features for layer in self.model.layers)
        return [self.setting.workload.batch(seed, 1000 * width + at) for at in range(count)]

    def told(self) -> dict[str, Any]:
        return {**super().told(), "gromo": VERSION}


def growing(model: MLP) -> nn.Module:
    """The network of gromo with that size, with the weights of ``model``."""
    try:
        if metadata.version("gromo") != VERSION:
            raise LibraryError(f"It needs gromo {VERSION}: pip install gromo=={VERSION}")
        from gromo.containers.growing_mlp import GrowingMLP
    except ImportError as error:
        raise LibraryError(f"It needs gromo: pip install gromo=={VERSION}") from error
    net = GrowingMLP(
        model.first.in_features, model.head.out_features, model.first.out_features, len(MLP.hidden),
        activation=nn.ReLU(), device=torch.device("cpu"),
    )  # fmt: skip
    for ours, theirs in zip(model.parameters(), net.parameters(), strict=True):
        theirs.data.copy_(ours.data)
    return net


def _enlarged(old: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The optimizer's state of a parameter that has grown: zero for what is new."""
    if old.dim() == 0:
        return old.clone()
    new = torch.zeros_like(parameter)
    new[tuple(slice(size) for size in old.shape)] = old
    return new
