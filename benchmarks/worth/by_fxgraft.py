"""Growth by fxgraft: to a size that is given, and by itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn

import fxgraft
from benchmarks.worth import schedule
from benchmarks.worth.data import Batch
from benchmarks.worth.learner import Learner
from benchmarks.worth.protocols import LARGE
from fxgraft.commands import DEEPEN
from fxgraft.explore import AutoGrowth
from fxgraft.util.flops import flop_counter


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


class Tried(Deepened):
    """`Deepened`, with one thing that may help.

    The arm's further options: ``isolated``, for how many steps the new block trains in isolation; ``blend``,
    in how many its alpha grows; ``new_rate`` and ``all_rate``, what the learning rate of the new block, and
    of everything, is multiplied by, for ``during`` steps: on a line from 0 to 1 where it is 0.
    """

    resumable = False  # seeds are not put back

    def make(self, model: nn.Module) -> None:
        super().make(model)
        self.new: list[fxgraft.Seed] = []
        self.since = 0  # steps after the change

    def grow(self, depth: int) -> None:
        options = self.setting.arm.options
        wanted = {key: options[key] for key in ("at", "init", "optimizer_state")}
        self.isolated, blend = options.get("isolated", 0), options.get("blend", 0)
        self.new = self.manager.deepen(
            "blocks", depth - self.depth, isolated=bool(self.isolated),
            blend=0 if self.isolated else blend, **wanted,
        )  # fmt: skip
        self.depth = depth

    def step(self, batch: Batch, share: float) -> float:
        new = [p for seed in self.new if seed.module is not None for p in seed.module.parameters()]
        factor, before = self._factor("new_rate"), [p.detach().clone() for p in new]
        loss = super().step(batch, share * self._factor("all_rate"))
        with torch.no_grad():
            for parameter, old in zip(new, before, strict=True):
                # What AdamW adds, weight decay too, is proportional to the rate.
                parameter.copy_(old + factor * (parameter - old))
        return loss

    def _factor(self, name: str) -> float:
        options = self.setting.arm.options
        if not self.new or self.since >= options.get("during", 0):
            return 1.0
        return options.get(name, 1.0) or (self.since + 1) / options["during"]

    def finish(self, loss: float) -> None:
        super().finish(loss)
        if not self.new:
            return
        self.since += 1
        if self.isolated and self.since == self.isolated:
            for seed in self.new:
                self.manager.blend(seed, steps=self.setting.arm.options["blend"])
        for seed in self.new:
            if seed.stage is fxgraft.Stage.HOLDING:
                self.manager.fossilize(seed)

    def structure(self) -> Hashable:
        return self.changed, tuple(seed.stage for seed in self.new)


class ByShares(Deepened):
    """To given depths at given shares of the budget of FLOPs; the learning rate falls at each of them.

    The arm's further option: ``factor``, what the rate is multiplied by each time. Where the depth stays the
    same only the rate falls: the control.
    """

    resumable = False  # a run with a budget begins anew
    budgeted = True

    def make(self, model: nn.Module) -> None:
        super().make(model)
        self.factor = 1.0

    def grow(self, depth: int) -> None:
        if depth > self.depth:
            super().grow(depth)
        self.factor *= self.setting.arm.options["factor"]

    def step(self, batch: Batch, share: float) -> float:
        return super().step(batch, share * self.factor)

    @property
    def blocks(self) -> int:
        """How many there are now."""
        return self.depth

    def told(self) -> dict[str, Any]:
        """What it did, for the record of an end."""
        return {"blocks": self.depth}


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

    def validation_loss(self, **part: Any) -> float:
        """That loss, charged like every other; its seconds are of the step that asks for it.

        ``part``: ``count``, ``first`` and ``training`` of `Workload.measure`.
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
    that; ``price``, which share of its price it has to give; ``soon``, the factor in the place of 2 after a
    block that stayed; ``statistics``, "batch" where blocks are judged with the statistics of the batch, as
    running ones lag behind at a high rate; ``lower``, the power of the factor by which the depth has grown
    that the learning rate is divided by.
    """

    budgeted = True

    def autogrow(self) -> AutoGrowth:
        """Let it grow by itself; `allow` was called before."""
        options, make = self.setting.arm.options, self.setting.workload.make
        size = [sum(p.numel() for p in make(depth).parameters()) for depth in (LARGE, self.setting.arm.depth)]
        return self.manager.autogrow(
            self.evaluate,
            DEEPEN(
                stack="blocks", at="end", init=options["init"],
                optimizer_state="copy" if options["init"] == "copy" else "fresh",
            ),
            budget=size[0] / size[1],
            when=self.is_time, blend=1, hold=options["hold"], gain="steps", patience=LARGE,
            price=options.get("price", 0.5), measurements=options.get("measurements", 1),
            standard_errors=options.get("standard_errors", 0.0),
        )  # fmt: skip

    def allow(self, limit: float) -> None:
        super().allow(limit)
        self.tried = 0.0

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
        mode = {"training": True} if self.setting.arm.options.get("statistics") == "batch" else {}
        return self.validation_loss(count=count // times, first=first, **mode)

    def step(self, batch: Batch, share: float) -> float:
        power = self.setting.arm.options.get("lower", 0.0)
        seeds = self.manager.seeds.values()
        kept = self.blocks - sum(seed.stage is not fxgraft.Stage.FOSSILIZED for seed in seeds)
        return super().step(batch, share * (self.setting.arm.depth / kept) ** power)


class GrownEarly(Grown):
    """As a `Grown`, but its first blocks come without a trial, as copies, at given shares of the budget.

    Those are the arm's changes. A trial that early finds nothing: a zeroed block has hardly begun to learn.
    """

    def begin(self, step: int) -> None:
        Learner.begin(self, step)
        super().begin(step)

    def grow(self, depth: int) -> None:
        new = depth - self.blocks
        self.manager.deepen("blocks", new, blend=0, init="copy", optimizer_state="copy")


class Anything(Autogrown):
    """`fxgraft.SeedManager.autogrow` with its defaults, within a budget of FLOPs, until the rate falls.

    All that it computes is charged, what `SeedManager.step` does for it included. The arm's options are
    arguments in place of the defaults; it has none but in tests.
    """

    budgeted = True

    def autogrow(self) -> AutoGrowth:
        """Let it grow by itself; `allow` was called before."""
        return self.manager.autogrow(self.evaluate, budget=self.budget, **self.setting.arm.options)

    def begin(self, step: int) -> None:
        self._charging(lambda: super(Anything, self).begin(step))
        assert self.growth is not None
        if not self.growth.done and self.ledger.total_flops >= (1 - schedule.DECAY) * self.limit:
            self._charging(self.growth.stop)

    def finish(self, loss: float) -> None:
        self._charging(lambda: super(Anything, self).finish(loss))

    def _charging(self, action: Callable[[], None]) -> None:
        """Charge what evaluations inside of it, which charge themselves, leave over."""
        before = self.ledger.flops["change"]
        with flop_counter() as counting:
            action()
        inside = self.ledger.flops["change"] - before
        self.ledger.flops["change"] += counting.get_total_flops() - inside

    def told(self) -> dict[str, Any]:
        parameters = sum(p.numel() for p in self.host.parameters())
        return {**super().told(), "parameters": parameters}
