"""A network in training that can change its size: plain, by hand, and by fxgraft.

A change draws from torch's global random stream, which is seeded before it by random seed and change: a run
that was killed makes the same changes again on untrained networks, then loads its state into the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxgraft
from benchmarks.worth import data
from benchmarks.worth.arms import Arm
from benchmarks.worth.costs import Counted, Ledger
from benchmarks.worth.data import Batch
from benchmarks.worth.models import set_outputs_zero
from benchmarks.worth.protocols import LARGE
from benchmarks.worth.workloads import Workload, loss_of
from fxgraft.commands import DEEPEN
from fxgraft.explore import AutoGrowth
from fxgraft.util.flops import flop_counter


@dataclass(frozen=True)
class Setting:
    """What a learner is made for."""

    workload: Workload
    arm: Arm
    seed: int
    rate: float
    unit: int  # N, the steps that the arm's shares are of


class Learner:
    """A plain network of one size.

    Attributes:
        model: what is trained and evaluated.
        optimizers: of its parameters; one, but for Muon.
        changed: how many of the arm's changes were made.
    """

    resumable = True

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
        while self.changed < len(changes) and step >= round(changes[self.changed][0] * self.setting.unit):
            self.counted.run(self.ledger, "change", None, self.change)

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


class Deepened(Learner):
    """`fxgraft.SeedManager.deepen`, in a traced host."""

    def make(self, model: nn.Module) -> None:
        self.host = fxgraft.trace(model, (self.setting.workload.batch(0, 0)[0],))
        super().make(self.host)
        self.manager = fxgraft.SeedManager(self.host, self.optimizers)
        self.depth = self.setting.arm.depth

    def grow(self, depth: int) -> None:
        wanted = {key: self.setting.arm.options[key] for key in ("at", "init", "optimizer_state")}
        self.manager.deepen("blocks", depth - self.depth, blend=0, **wanted)
        self.depth = depth

    def finish(self, loss: float) -> None:
        with self.ledger.time("train"):
            self.manager.step(loss)


class Widened(Deepened):
    """`fxgraft.SeedManager.widen`: all MLPs from ``hidden`` to 256."""

    def grow(self, depth: int) -> None:
        missing = 256 - self.sizes["hidden"]
        for at in range(depth):
            self.manager.widen(f"blocks.{at}.up", missing)


class Autogrown(Deepened):
    """`fxgraft.SeedManager.autogrow`: nothing known but a budget of parameters."""

    resumable = False  # what it tries is not replayed
    budget = 8.0

    growth: AutoGrowth | None = None

    def begin(self, step: int) -> None:
        if self.growth is None:
            with self.ledger.time("change"):
                self.growth = self.autogrow()

    def autogrow(self) -> AutoGrowth:
        """Let it grow by itself."""
        return self.manager.autogrow(self.evaluate, budget=self.budget)

    def evaluate(self) -> float:
        """The loss on the validation data."""
        return self.validation_loss()

    def validation_loss(self, **part: int) -> float:
        """That loss, charged like every other; its seconds are of the step that asks for it.

        ``part``: ``count`` and ``first`` of `Workload.measure`.
        """
        with flop_counter() as counting:
            loss = self.setting.workload.measure(self.host, "validation", **part)["loss"]
        self.ledger.flops["change"] += counting.get_total_flops()
        return loss

    @property
    def blocks(self) -> int:
        """How many there are now, those that are only tried included."""
        return len(self.host.stacks["blocks"].blocks)

    def structure(self) -> Hashable:
        seeds = tuple((name, seed.stage) for name, seed in self.manager.seeds.items())
        return seeds, sum(p.numel() for p in self.host.parameters())

    def told(self) -> dict[str, Any]:
        """What it did, for the record of an end."""
        return {"blocks": self.blocks, "history": self.growth.history if self.growth else []}


class Grown(Autogrown):
    """The size is not known: `autogrow` tries one more block from time to time, and keeps it while it pays.

    The arm's options: ``first`` and ``last``, the shares of the budget of FLOPs between which a block may be
    tried, each time when twice as much is spent as the time before; ``hold``, for what share of the steps
    before it a block learns until it is judged; ``init``; ``measurements``, how often it is measured for
    that; ``soon``, the factor in the place of 2 after a block that stayed.
    """

    def autogrow(self) -> AutoGrowth:
        """Let it grow by itself; `allow` was called before."""
        options, make = self.setting.arm.options, self.setting.workload.make
        size = [sum(p.numel() for p in make(depth).parameters()) for depth in (LARGE, self.setting.arm.depth)]
        return self.manager.autogrow(
            self.evaluate, DEEPEN(stack="blocks", at="end", init=options["init"]), budget=size[0] / size[1],
            when=self.is_time, blend=1, hold=options["hold"], gain="steps", patience=LARGE,
            measurements=options.get("measurements", 1),
        )  # fmt: skip

    def allow(self, limit: float) -> None:
        """A run with so many FLOPs begins."""
        self.limit, self.tried = limit, 0.0

    def is_time(self, _: object) -> bool:
        """Whether one more block is to be tried now."""
        spent, options = self.ledger.total_flops / self.limit, self.setting.arm.options
        stayed = bool(self.growth and self.growth.history) and self.growth.history[-1]["what"] == "kept"
        factor = options.get("soon", 2) if stayed else 2
        if not max(options["first"], factor * self.tried) <= spent <= options["last"]:
            return False
        self.tried = spent
        return True

    def evaluate(self) -> float:
        """As of an `Autogrown`, on half of the data, since the same is measured twice each time.

        For several measurements each has a part of that, and other data.
        """
        times = self.setting.arm.options.get("measurements", 1)
        count = self.setting.workload.scale.validation // 2
        first = self.manager.steps * count if times > 1 else 0
        return self.validation_loss(count=count // times, first=first)


KINDS: dict[str, type[Learner]] = {
    "fixed": Learner,
    "stack": Stacked,
    "net2net": Net2Net,
    "stochastic": Stochastic,
    "deepen": Deepened,
    "widen": Widened,
    "autogrow": Autogrown,
    "grow": Grown,
}
