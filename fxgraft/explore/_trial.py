"""The candidate on trial: it is blended in, held, and measured; it stays, or fades out."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from typing import Any

from fxgraft.commands import BLEND, CULL, DEEPEN, FOSSILIZE
from fxgraft.errors import StageError
from fxgraft.explore import _beginnings
from fxgraft.explore._growth_state import FADING, TRYING
from fxgraft.explore._price import SHARE, price
from fxgraft.explore._rounds import Rounds
from fxgraft.explore.measuring import Evaluate, check, numbers
from fxgraft.explore.table import Row
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage


class GrowthTrial:
    """Leads what a round has chosen. All that it remembers is in the memory of the rounds."""

    def __init__(self, rounds: Rounds):
        self._rounds = rounds

    def row_of(self, block: DEEPEN, most: int) -> dict[str, Any]:
        """What is told of such a block. Raises `ValueError` if it has more than ``most`` parameters."""
        host = self._rounds.manager.host
        place = host.stacks[block.stack].blocks[-1]
        size = block.count * sum(p.numel() for p in host.get_submodule(place).parameters())
        if size > most:
            raise ValueError(
                f"the budget is spent: a block has {size:,} parameters; there is room for {most:,}"
            )
        return {"slot": place, "blueprint": "deepen", "parameters": size}

    def begin_block(self, block: DEEPEN, most: int) -> None:
        """Try the block that was asked for: there is nothing to choose from.

        Raises:
            ValueError: it has more than ``most`` parameters.
        """
        memory = self._rounds.memory
        memory.row = self.row_of(block, most)
        reply = self._rounds.say(replace(block, blend=block.blend or max(self._rounds.course.blend, 1)))
        memory.seed = reply.seed
        self._rounds.note("deepening")
        if reply.refused:
            return self._drop(None, reply.reason)
        return self._hold()

    def begin(self, row: Row) -> None:
        """Try the candidate of ``row``, which an exploration has kept in training."""
        rounds, memory = self._rounds, self._rounds.memory
        memory.row, memory.seed = row.to_dict(), row.seed
        if row.widens is not None:
            return self._widen(row, row.widens)
        if row.seed not in rounds.manager.seeds:
            return rounds.end("what was chosen is gone: it was culled by somebody else")
        if _beginnings.helps(row):
            rounds.note("blending", row)
            reply = rounds.say(BLEND(seed=str(row.seed), steps=rounds.course.blend))
        elif _beginnings.can_begin_anew(row):
            rounds.note("beginning anew", row, reason="what it learnt in isolation does not help")
            reply = _beginnings.begin_anew(rounds.manager, rounds.say, row, rounds.course.blend)
            memory.seed = reply.seed if reply.accepted else row.seed
        else:
            return self._drop(row, "what it learnt in isolation does not help")
        return self._drop(row, reply.reason) if reply.refused else self._hold()

    def _widen(self, row: Row, widens: tuple[str, int]) -> None:
        """Layers that grow compute what they did: there is nothing to judge."""
        reply = _beginnings.widen(self._rounds.manager, self._rounds.say, row)
        if reply.refused:
            return self._drop(row, reply.reason)
        self._rounds.note("widened", row, reason=f"{widens[0]} by {widens[1]}")
        return self._rounds.kept()

    def _hold(self) -> None:
        memory = self._rounds.memory
        memory.phase, memory.held_since, memory.gains = TRYING, None, []

    def judge(self) -> None:
        """What is held long enough is measured: it stays, or fades."""
        memory, manager = self._rounds.memory, self._rounds.manager
        seed = manager.seeds.get(memory.seed or "")
        if seed is None:
            return self._rounds.end("what was tried is gone: it was culled by somebody else")
        if seed.stage is Stage.FOSSILIZED:
            return self._keep(seed.contribution, "by somebody else")
        if seed.stage is not Stage.HOLDING or not self._is_to_be_measured(seed):
            return None
        try:
            memory.gains.append(manager.measure(seed, partial(_mean, self._rounds.evaluate), at=seed.alpha))
        except StageError as error:
            return self.take_out(str(error))
        if len(memory.gains) < self._rounds.course.measurements:
            return None
        gained = statistics.median(memory.gains)
        needed = self._has_to_give(seed)
        if gained > needed:
            reply = self._rounds.say(FOSSILIZE(seed=seed.name))
            reason = f"more than {needed:.4g}"
            return self._keep(gained, reason) if reply.accepted else self.take_out(reply.reason)
        return self.take_out(f"it no longer pays: not more than {needed:.4g}", gained)

    def _is_to_be_measured(self, seed: Seed) -> bool:
        """Whether it is held long enough for the next measurement."""
        memory, steps = self._rounds.memory, self._rounds.manager.steps
        if memory.held_since is None:
            memory.held_since = steps
        hold = self._rounds.course.hold_for(memory.held_since)
        if not seed.spec.isolated:  # what began anew has been taught by nothing else
            hold += self._rounds.course.blend
        return steps - memory.held_since >= self._rounds.course.measure_after(hold, len(memory.gains))

    def _has_to_give(self, seed: Seed) -> float:
        """What the loss has to rise by without it, for it to stay."""
        rounds, memory = self._rounds, self._rounds.memory
        if not isinstance(rounds.course.gain, str):
            return rounds.course.gain * abs(seed.loss_without or 0.0)
        size = rounds.parameters
        own = sum(p.numel() for p in seed.module.parameters()) if seed.module is not None else 0
        ratio = (size + own) / size
        flops = check(rounds.manager.host, rounds.evaluate).flops
        if flops is not None and memory.bare:
            ratio = flops / memory.bare
        began = memory.held_since if memory.held_since is not None else rounds.manager.steps
        began = max(began - rounds.course.blend, 0)
        slope = rounds.manager.peers.mean(rounds.clock.pace().slope() or 0.0)
        return SHARE * price(slope, began, rounds.manager.steps - began, ratio)

    def _keep(self, gained: float | None, reason: str) -> None:
        self._rounds.note("kept", contribution=gained, reason=reason)
        self._rounds.memory.unpaid = 0
        self._rounds.kept()

    def take_out(self, reason: str, gained: float | None = None) -> None:
        """Blend it out; `fade` culls it."""
        memory = self._rounds.memory
        self._rounds.note("dropped", contribution=gained, reason=reason)
        self._rounds.say(BLEND(seed=str(memory.seed), to=0.0, steps=self._rounds.course.fade))
        memory.phase = FADING

    def fade(self) -> None:
        """What is blended out is culled."""
        seed = self._rounds.manager.seeds.get(self._rounds.memory.seed or "")
        if seed is not None and seed.stage is Stage.BLENDING:
            return
        if seed is not None:
            self._rounds.say(CULL(seed=seed.name))
        self._rounds.not_paid()

    def _drop(self, row: Row | None, reason: str) -> None:
        self._rounds.note("dropped", row, reason=reason)
        if self._rounds.memory.seed in self._rounds.manager.seeds:
            self._rounds.say(CULL(seed=str(self._rounds.memory.seed)))
        self._rounds.not_paid()


def _mean(evaluate: Evaluate) -> float:
    return statistics.fmean(numbers(evaluate()))
