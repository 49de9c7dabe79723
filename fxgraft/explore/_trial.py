"""The candidate on trial: it is blended in, held, and measured; it stays, or fades out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from fxgraft.commands import BLEND, CULL, DEEPEN, FOSSILIZE, FUSE
from fxgraft.errors import FxGraftError, StageError
from fxgraft.explore import _restarting
from fxgraft.explore._example_run import BlockFlops
from fxgraft.explore._growth_state import FADING, TRYING
from fxgraft.explore._memory import COPIES, of_values
from fxgraft.explore._price import price
from fxgraft.explore._rounds import Rounds
from fxgraft.explore.growth_settings import Budget
from fxgraft.explore.measuring import Checked, Evaluate, evaluate_host, numbers
from fxgraft.explore.table import Row
from fxgraft.resizing.arguments import places
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage

COPY = "copy"
"""The ``init`` of a `DEEPEN` whose block changes what the host computes."""


class GrowthTrial:
    """Leads what a round has chosen. All that it remembers is in the memory of the rounds."""

    def __init__(self, rounds: Rounds, budget: Budget):
        self._rounds, self._budget = rounds, budget

    def row_of(self, block: DEEPEN, most: Mapping[str, int]) -> dict[str, Any]:
        """The row of such a block. Raises `ValueError` if it is known to have more than ``most`` says."""
        host = self._rounds.manager.host
        blocks = host.stacks[block.stack].blocks
        place = places(len(blocks), block.count, block.at, block.like)[0]
        like = blocks[place.like]
        parameters = list(host.get_submodule(like).parameters())
        size = block.count * sum(p.numel() for p in parameters)
        memory = COPIES * block.count * sum(p.numel() * p.element_size() for p in parameters)
        one = BlockFlops(host).of(like)
        flops = None if one is None else block.count * one
        found = (
            (size, "parameters", "parameters"),
            (flops, "flops", "FLOPs"),
            (memory, "memory", "bytes to train"),
        )
        for given, name, said in found:
            if name in most and given is not None and given > most[name]:
                raise ValueError(
                    f"the budget is spent: a block has {given:,} {said}; there is room for {most[name]:,}"
                )
        slot = blocks[place.index]
        return {"slot": slot, "blueprint": "deepen", "parameters": size, "flops": flops, "memory": memory}

    def begin_block(self, block: DEEPEN, most: Mapping[str, int], looked: Checked) -> None:
        """Try the block that was asked for: there is nothing to choose from.

        Args:
            block: the command for it.
            most: what there is room for.
            looked: what the evaluation says of the host before.

        Raises:
            ValueError: it has more than ``most`` says.
        """
        memory = self._rounds.memory
        memory.row = {**self.row_of(block, most), "loss": self._loss_of(looked)}
        tried = replace(block, blend=block.blend or max(self._rounds.settings.blend, 1))
        if block.init == COPY:  # which is missed when it is taken out, whether it is worth having or not
            zeroed = replace(tried, init="zero", optimizer_state="fresh")
            if self._can_be(zeroed):
                tried, memory.row["copy"] = zeroed, asdict(block)
        reply = self._rounds.carry_out(tried)
        memory.seed = reply.seed
        self._rounds.note("deepening")
        if reply.refused:
            return self._drop(None, reply.reason)
        return self._hold()

    def _can_be(self, block: DEEPEN) -> bool:
        """Whether such a block could be inserted now: not each block has output layers to be zeroed."""
        manager = self._rounds.manager
        try:
            with manager.plan_together():
                manager.deepen(block.stack, at=block.at, init=block.init, blend=block.blend, like=block.like)
        except FxGraftError:
            return False
        return True

    def _loss_of(self, looked: Checked) -> float | None:
        """The loss before something is tried; None where it is not asked for."""
        if isinstance(self._rounds.settings.gain, str):
            return None
        return self._rounds.manager.peers.mean(statistics.fmean(looked.losses))

    def begin(self, row: Row) -> None:
        """Try the candidate of ``row``, which an exploration has kept in training."""
        rounds, memory = self._rounds, self._rounds.memory
        memory.row, memory.seed = row.to_dict(), row.seed
        if row.seed not in rounds.manager.seeds:
            return rounds.end("what was chosen is gone: it was culled from outside")
        if row.helps:
            rounds.note("blending", row)
            reply = rounds.carry_out(BLEND(seed=str(row.seed), steps=rounds.settings.blend))
        elif _restarting.can_restart(row):
            rounds.note("beginning anew", row, reason="no gain in isolation")
            reply = _restarting.restart(rounds.manager, rounds.carry_out, row, rounds.settings.blend)
            memory.seed = reply.seed if reply.accepted else row.seed
        else:
            return self._drop(row, "no gain in isolation")
        return self._drop(row, reply.reason) if reply.refused else self._hold()

    def _hold(self) -> None:
        memory = self._rounds.memory
        memory.phase, memory.held_since, memory.gains, memory.losses = TRYING, None, [], []

    def judge(self) -> None:
        """What is held long enough is measured: it stays, or fades."""
        memory, manager = self._rounds.memory, self._rounds.manager
        seed = manager.seeds.get(memory.seed or "")
        if seed is None:
            return self._rounds.end("what was tried is gone: it was culled from outside")
        if seed.stage is Stage.FOSSILIZED:
            return self._keep(seed.contribution, "from outside")
        if seed.stage is not Stage.HOLDING or not self._is_to_be_measured(seed):
            return None
        try:
            memory.gains.append(manager.measure(seed, partial(_mean, self._rounds.evaluate), at=seed.alpha))
        except StageError as error:
            return self.take_out(str(error))
        memory.losses.append(seed.loss_with or 0.0)
        if len(memory.gains) < self._rounds.settings.measurements:
            return None
        gained = statistics.median(memory.gains)
        flops = self._flops() if isinstance(self._rounds.settings.gain, str) else None
        needed = self._has_to_give(seed, flops) + self._rounds.settings.margin(memory.gains)
        if (objection := self._objection(gained, needed) or self._over_budget(flops)) is not None:
            return self.take_out(objection, gained)
        reason = f"above {needed:.2g}"
        if (copied := (memory.row or {}).get("copy")) is not None:
            return self._replace(seed, DEEPEN(**copied), gained, reason)
        reply = self._rounds.carry_out(FOSSILIZE(seed=seed.name))
        if reply.refused:
            return self.take_out(reply.reason)
        return self._keep(gained, reason)

    def _replace(self, seed: Seed, block: DEEPEN, gained: float, reason: str) -> None:
        """A copy comes in the place of the block that was tried, which had zeroed output layers."""
        for command in (CULL(seed=seed.name), replace(block, blend=0)):
            reply = self._rounds.carry_out(command)
            if reply.refused:
                return self._drop(None, reply.reason)
        self._rounds.memory.seed = reply.seed
        return self._keep(gained, f"{reason}; a copy is in its place")

    def _objection(self, gained: float, needed: float) -> str | None:
        """Why what is held must go; None where it may stay.

        A host that has learnt with a part misses it when it is taken out, also where it would have learnt as
        well without. So the loss must have fallen, too, since before the part was tried.
        """
        if not gained > needed:
            return f"it no longer pays: not more than {needed:.4g}"
        memory = self._rounds.memory
        before, now = (memory.row or {}).get("loss"), statistics.median(memory.losses)
        if before is None or isinstance(self._rounds.settings.gain, str) or before - now > needed:
            return None
        return f"the loss with it is {now:.4g}, and was {before:.4g} before it was tried"

    def _flops(self) -> int | None:
        """Of a forward pass of the host, with what is on trial; None where they are not known."""
        return evaluate_host(self._rounds.manager.host, self._rounds.evaluate).flops

    def _over_budget(self, flops: int | None) -> str | None:
        """Why what costs more than was seen before it was there must go; None where there is room for it."""
        limit = self._rounds.memory.flops or 0
        if self._budget.flops is None:
            return None
        flops = self._flops() if flops is None else flops
        if flops is None or flops <= self._budget.flops * limit:
            return None
        most = f"{self._budget.flops:g} times {limit:,}"
        return f"a forward pass with it has {flops:,} FLOPs; the budget is {most}"

    def _is_to_be_measured(self, seed: Seed) -> bool:
        """Whether it is held long enough for the next measurement."""
        memory, steps = self._rounds.memory, self._rounds.manager.steps
        if memory.held_since is None:
            memory.held_since = steps
        hold = self._rounds.settings.hold_for(memory.held_since)
        if not seed.spec.isolated:  # a restarted one has learned in the blend only
            hold += self._rounds.settings.blend
        return steps - memory.held_since >= self._rounds.settings.measure_after(hold, len(memory.gains))

    def _has_to_give(self, seed: Seed, flops: int | None) -> float:
        """What the loss has to rise by without it, for it to stay; ``flops`` are those of a forward pass."""
        rounds, memory = self._rounds, self._rounds.memory
        if not isinstance(rounds.settings.gain, str):
            return rounds.settings.gain * abs(seed.loss_without or 0.0)
        size = rounds.parameters
        own = sum(p.numel() for p in seed.module.parameters()) if seed.module is not None else 0
        ratio = (size + own) / size
        if flops is not None and memory.bare:
            ratio = flops / memory.bare
        began = memory.held_since if memory.held_since is not None else rounds.manager.steps
        began = max(began - rounds.settings.blend, 0)
        slope = rounds.manager.peers.mean(rounds.clock.pace().slope() or 0.0)
        return rounds.settings.has_to_give(price(slope, began, rounds.manager.steps - began, ratio))

    def _keep(self, gained: float | None, reason: str) -> None:
        rounds, memory = self._rounds, self._rounds.memory
        memory.values += of_values(rounds.manager.host, memory.row or {})
        if not memory.row or not memory.row.get("widens"):
            rounds.note("kept", contribution=gained, reason=reason)
            return rounds.kept()
        group, by = memory.row["widens"]
        reply = rounds.carry_out(FUSE(seed=str(memory.seed)))
        if reply.accepted:
            rounds.note("widened", contribution=gained, reason=f"{reason}; {group} has {by} channels more")
        else:
            rounds.note("kept", contribution=gained, reason=f"{reason}; as a branch: {reply.reason}")
        return rounds.kept()

    def take_out(self, reason: str, gained: float | None = None) -> None:
        """Blend it out; `fade` culls it."""
        memory = self._rounds.memory
        self._rounds.note("dropped", contribution=gained, reason=reason)
        self._rounds.carry_out(BLEND(seed=str(memory.seed), to=0.0, steps=self._rounds.settings.fade))
        memory.phase = FADING

    def fade(self) -> None:
        """What is blended out is culled."""
        seed = self._rounds.manager.seeds.get(self._rounds.memory.seed or "")
        if seed is not None and seed.stage is Stage.BLENDING:
            return
        if seed is not None:
            self._rounds.carry_out(CULL(seed=seed.name))
        self._rounds.not_paid()

    def _drop(self, row: Row | None, reason: str) -> None:
        self._rounds.note("dropped", row, reason=reason)
        if self._rounds.memory.seed in self._rounds.manager.seeds:
            self._rounds.carry_out(CULL(seed=str(self._rounds.memory.seed)))
        self._rounds.not_paid()


def _mean(evaluate: Evaluate) -> float:
    return statistics.fmean(numbers(evaluate()))
