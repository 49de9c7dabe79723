"""Growth and its peers by hand, without fxgraft."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from benchmarks.worth import data
from benchmarks.worth.learner import Learner
from benchmarks.worth.models import set_outputs_zero


class Stacked(Learner):
    """G_stack: the whole stack of blocks, repeated; everything is copied, the optimizer begins anew."""

    def grow(self, depth: int) -> None:
        small, large = self.model, self.setting.workload.make(depth)
        take_over(small, large)
        for at, block in enumerate(large.blocks):
            block.load_state_dict(small.blocks[at % len(small.blocks)].state_dict())
        self.make(large)


class Net2Net(Learner):
    """New blocks behind the old, random within and with zero output layers; old optimizer state is kept."""

    def grow(self, depth: int) -> None:
        small, large = self.model, self.setting.workload.make(depth)
        take_over(small, large)
        for before, block in zip(small.blocks, large.blocks, strict=False):
            block.load_state_dict(before.state_dict())
        for block in large.blocks[len(small.blocks) :]:
            set_outputs_zero(block)
        (old,) = self.optimizers
        kept = {name: old.state[p] for name, p in small.named_parameters() if p in old.state}
        self.make(large)
        for name, parameter in large.named_parameters():
            if name in kept:
                self.optimizers[0].state[parameter] = kept[name]


def take_over(small: nn.Module, large: nn.Module) -> None:
    """Copy everything outside of the blocks."""
    found = {name: value for name, value in small.state_dict().items() if not name.startswith("blocks.")}
    missing = large.load_state_dict(found, strict=False)
    assert not missing.unexpected_keys, missing


class Stochastic(Learner):
    """Stochastic depth: block l of L is left out of a step with probability 0.5 l / L, for the whole batch.

    A block that runs in training adds its branch over its probability, so that evaluation needs no change.
    """

    def make(self, model: nn.Module) -> None:
        super().make(model)
        self.left_out: set[int] = set()
        for at, block in enumerate(model.blocks):
            block.forward = self._sometimes(at, block.forward)

    def _sometimes(self, at: int, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        kept = 1 - self.leaving(at)

        def run(x: Tensor) -> Tensor:
            if not self.model.training:
                return forward(x)
            return x if at in self.left_out else x + (forward(x) - x) / kept

        return run

    def leaving(self, at: int) -> float:
        """The probability that this block is left out."""
        return 0.5 * (at + 1) / self.setting.arm.depth

    def begin(self, step: int) -> None:
        draws = torch.rand(self.setting.arm.depth, generator=data.generator(self.setting.seed + 7919, step))
        self.left_out = {at for at, draw in enumerate(draws.tolist()) if draw < self.leaving(at)}

    def structure(self) -> Hashable:
        return self.setting.arm.depth - len(self.left_out)
