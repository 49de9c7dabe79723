"""Growth by itself: explores when it is time, keeps what helps, within a budget, until it no longer pays.

    waiting    for the loss to be flat, for a share of the run, or for what a function says
    exploring  the candidates that the budget has room for; the best by the score stays
    trying     it is blended in; or, where what it learnt in isolation does not help, it begins anew as a
               branch that adds nothing, and learns with the host
    judging    held, it is measured: what helps becomes a part of the host, what does not is taken out
    done       the budget is spent, or a round did not pay, or all shares of the run are over

All that changes the host is a command, so a log of commands has it all.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fxgraft import commands
from fxgraft.commands import BLEND, CULL, DEEPEN, FOSSILIZE, SEED, Command, Reply
from fxgraft.errors import CheckpointError, FxGraftError, StageError
from fxgraft.explore import beginnings, scoring
from fxgraft.explore.candidates import AUTO, Choice, find
from fxgraft.explore.clock import Clock
from fxgraft.explore.depths import block_of
from fxgraft.explore.exploration import Exploration
from fxgraft.explore.growth_state import DONE, EXPLORING, FADING, TRYING, WAITING, GrowthState
from fxgraft.explore.measuring import Evaluate, check, numbers
from fxgraft.explore.price import SHARE, price
from fxgraft.explore.scoring import Score
from fxgraft.explore.table import Row
from fxgraft.explore.terms import Budget, Course, When
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.telemetry.events import logger
from fxgraft.util.tables import text_table

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager


class Growth:
    """An automatic growth, from `SeedManager.autogrow`. ``manager.step(loss)`` runs it; print it to see it.

    Attributes:
        exploration: the latest `Exploration`, or None.
    """

    def __init__(
        self,
        manager: SeedManager,
        evaluate: Evaluate,
        candidates: Choice | DEEPEN,
        budget: float | Mapping[str, float],
        when: When,
        total_steps: int | None,
        names: Sequence[str] | None,
        score: str | Score,
        course: Course,
    ):
        self._manager, self._evaluate = manager, evaluate
        self._block = block_of(manager.host, candidates)
        self._candidates: Choice = AUTO if isinstance(candidates, DEEPEN) else candidates
        self._names, self._score, self._course = names, score, course
        scoring.resolve(score)
        self._budget = Budget.of(budget)
        self._clock = Clock(manager, evaluate, course, when, total_steps)
        bare = check(manager.host, evaluate)
        if self._budget.flops is not None and bare.flops is None:
            raise ValueError("budget: the FLOPs of this host cannot be told; expected a budget of parameters")
        if self._block is None:  # what can never grow is an error now
            find(manager.host, self._candidates, names, None, bare.flops)
        self._memory = GrowthState(parameters=self._parameters(), flops=bare.flops)
        self.exploration: Exploration | None = None

    # What there is to see

    @property
    def done(self) -> bool:
        """Whether the growth has ended."""
        return self._memory.phase == DONE

    @property
    def phase(self) -> str:
        """``"waiting"``, ``"exploring"``, ``"trying"``, ``"fading"`` or ``"done"``."""
        return self._memory.phase

    @property
    def history(self) -> list[dict[str, Any]]:
        """The changes made, in JSON types: step, what, slot, blueprint, parameters, contribution, reason."""
        return [dict(entry) for entry in self._memory.history]

    def __str__(self) -> str:
        memory = self._memory
        kept = sum(entry["what"] == "kept" for entry in memory.history)
        grown = self._parameters() / max(memory.parameters, 1)
        head = (
            f"autogrow: {memory.phase} at step {self._manager.steps}; {kept} kept; "
            f"{grown:.2f} times the parameters, of {self._budget.parameters:g}"
        )
        if memory.flops and memory.grown:
            head += f"; {memory.grown / memory.flops:.2f} times the FLOPs of a forward pass"
        names = ("step", "what", "slot", "blueprint", "parameters", "contribution", "reason")
        if not memory.history:
            return head
        return f"{head}\n{text_table(names, [[entry[name] for name in names] for entry in memory.history])}"

    __repr__ = __str__

    def state_dict(self) -> dict[str, Any]:
        """Its state, in JSON types. `SeedManager.save` saves it as well."""
        memory = self._memory
        self._clock.settle(memory)
        state = asdict(memory)
        exploring = memory.phase == EXPLORING and self.exploration is not None
        state["exploration"] = self.exploration.state_dict() if exploring and self.exploration else None
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. The manager must have the seeds of that moment: load it first.

        Raises:
            CheckpointError: the state is damaged, or belongs to other seeds or candidates.
        """
        try:
            given = dict(state)
            exploration = given.pop("exploration")
            memory = GrowthState(**given)
            if exploration is not None:
                seeds = [commands.parse(entry["command"]) for entry in exploration["entries"]]
                self.exploration = self._manager.explore(
                    [seed for seed in seeds if isinstance(seed, SEED)],
                    evaluate=self._evaluate,
                    steps=self._course.explore,
                    keep=1,
                    score=self._score,
                    state=exploration,
                )
        except (KeyError, TypeError, ValueError, FxGraftError) as error:
            raise CheckpointError(
                f"the growth cannot go on from that state: {error}. Call autogrow with the arguments of the "
                f"saved run"
            ) from error
        self._memory = memory
        self._clock.begin(memory)

    def stop(self) -> None:
        """End the growth: candidates are culled now, a seed on trial is blended out, what was kept stays.

        The changes are commands, like all others. A CULL of the seed on trial ends a growth, too. With
        several ranks each has to call it.
        """
        phase, self._memory.stopped = self._memory.phase, True
        if phase == EXPLORING and self.exploration is not None:
            self.exploration.cancel()
        if phase == TRYING:
            self._take_out("it was stopped")
        elif phase in (WAITING, EXPLORING):
            self._end("it was stopped")

    # Its course

    def step(self, loss: float | Tensor | None = None) -> None:
        """Count one training step. Called by ``manager.step(loss)``."""
        self._clock.see(loss)
        match self._memory.phase:
            case "waiting":
                if self._clock.is_time(self._memory, loss):
                    self._explore()
            case "exploring":
                if self.exploration is not None and self.exploration.done:
                    self._choose(self.exploration)
            case "trying":
                self._judge()
            case "fading":
                self._fade()

    def _explore(self) -> None:
        bare = check(self._manager.host, self._evaluate)
        self._memory.bare = bare.flops
        most = {"parameters": int(self._budget.parameters * self._memory.parameters) - self._parameters()}
        if self._budget.flops is not None and bare.flops is not None:
            most["flops"] = int(self._budget.flops * (self._memory.flops or 0)) - bare.flops
        try:
            if min(most.values()) < 1:
                raise ValueError("the budget is spent")
            if self._block is not None:
                return self._deepen(self._block, most["parameters"])
            self.exploration = self._manager.explore(
                self._candidates,
                evaluate=self._evaluate,
                steps=self._course.explore,
                keep=1,
                blueprints=self._names,
                score=self._score,
                most=most,
            )
        except (ValueError, FxGraftError) as error:
            return self._end(str(error))
        self._note("exploring", None, reason=f"{len(self.exploration.table)} candidates")
        self._memory.phase = EXPLORING
        return None

    def _deepen(self, block: DEEPEN, most: int) -> None:
        """Try the block that was asked for: there is nothing to choose from."""
        place = self._manager.host.stacks[block.stack].blocks[-1]
        size = block.count * sum(p.numel() for p in self._manager.host.get_submodule(place).parameters())
        if size > most:
            raise ValueError("the budget is spent")
        self._memory.row = {"slot": place, "blueprint": "deepen", "parameters": size}
        reply = self._say(replace(block, blend=block.blend or max(self._course.blend, 1)))
        self._memory.seed = reply.seed
        self._note("deepening", None)
        if reply.refused:
            return self._drop(None, reply.reason)
        self._memory.phase, self._memory.held_since, self._memory.gains = TRYING, None, []
        return None

    def _choose(self, exploration: Exploration) -> None:
        """Try the best."""
        best = exploration.best(1)
        if not best:
            reasons = [row.reason for row in exploration.table if row.reason]
            return self._end(f"nothing could be measured: {reasons[0] if reasons else 'no candidate'}")
        row = best[0]
        self._memory.row = row.to_dict()
        self._memory.seed = row.seed
        if row.widens is not None:
            reply = beginnings.widen(self._manager, self._say, row)
            if reply.refused:
                return self._drop(row, reply.reason)
            self._note("widened", row, reason=f"{row.widens[0]} by {row.widens[1]}")
            self._weigh()
            return self._wait_again()
        if row.seed not in self._manager.seeds:
            return self._end("what was chosen is gone: it was culled by somebody else")
        if beginnings.helps(row):
            self._note("blending", row)
            reply = self._say(BLEND(seed=str(row.seed), steps=self._course.blend))
        elif beginnings.can_begin_anew(row):
            self._note("beginning anew", row, reason="what it learnt in isolation does not help")
            reply = beginnings.begin_anew(self._manager, self._say, row, self._course.blend)
            self._memory.seed = reply.seed if reply.accepted else row.seed
        else:
            self._drop(row, "what it learnt in isolation does not help")
            return None
        if reply.refused:
            self._drop(row, reply.reason)
            return None
        self._memory.phase, self._memory.held_since, self._memory.gains = TRYING, None, []
        return None

    def _judge(self) -> None:
        """What is held long enough is measured: it stays, or fades."""
        memory, seed = self._memory, self._manager.seeds.get(self._memory.seed or "")
        if seed is None:
            return self._end("what was tried is gone: it was culled by somebody else")
        if seed.stage is Stage.FOSSILIZED:
            return self._keep(seed.contribution, "by somebody else")
        if seed.stage is not Stage.HOLDING:
            return None
        if memory.held_since is None:
            memory.held_since = self._manager.steps
        hold = self._course.hold_for(memory.held_since)
        if not seed.spec.isolated:  # what began anew has been taught by nothing else
            hold += self._course.blend
        held = self._manager.steps - memory.held_since
        if held < self._course.measure_after(hold, len(memory.gains)):
            return None
        try:
            memory.gains.append(self._manager.measure(seed, partial(_mean, self._evaluate), at=seed.alpha))
        except StageError as error:
            return self._take_out(str(error))
        if len(memory.gains) < self._course.measurements:
            return None
        gained = statistics.median(memory.gains)
        needed = self._has_to_give(seed)
        if gained > needed:
            reply = self._say(FOSSILIZE(seed=seed.name))
            reason = f"more than {needed:.4g}"
            return self._keep(gained, reason) if reply.accepted else self._take_out(reply.reason)
        return self._take_out(f"it no longer pays: not more than {needed:.4g}", gained)

    def _has_to_give(self, seed: Seed) -> float:
        """What the loss has to rise by without it, for it to stay."""
        gain, memory = self._course.gain, self._memory
        if not isinstance(gain, str):
            return gain * abs(seed.loss_without or 0.0)
        size = self._parameters()
        own = sum(p.numel() for p in seed.module.parameters()) if seed.module is not None else 0
        ratio = (size + own) / size
        flops = check(self._manager.host, self._evaluate).flops
        if flops is not None and memory.bare:
            ratio = flops / memory.bare
        began = memory.held_since if memory.held_since is not None else self._manager.steps
        began = max(began - self._course.blend, 0)
        slope = self._manager.peers.mean(self._clock.pace().slope() or 0.0)
        return SHARE * price(slope, began, self._manager.steps - began, ratio)

    def _keep(self, gained: float | None, reason: str) -> None:
        self._note("kept", None, contribution=gained, reason=reason)
        self._memory.unpaid = 0
        self._weigh()
        self._wait_again()

    def _weigh(self) -> None:
        """What a forward pass costs now, for the summary."""
        self._memory.grown = check(self._manager.host, self._evaluate).flops

    def _wait_again(self) -> None:
        """The next round."""
        self._memory.phase = WAITING
        self._clock.rest(self._memory)
        if self._clock.has_more(self._memory) is False:
            self._end("all shares of the run are over")

    def _take_out(self, reason: str, gained: float | None = None) -> None:
        self._note("dropped", None, contribution=gained, reason=reason)
        self._say(BLEND(seed=str(self._memory.seed), to=0.0, steps=self._course.fade))
        self._memory.phase = FADING

    def _fade(self) -> None:
        seed = self._manager.seeds.get(self._memory.seed or "")
        if seed is not None and seed.stage is Stage.BLENDING:
            return
        if seed is not None:
            self._say(CULL(seed=seed.name))
        self._not_paid()

    def _drop(self, row: Row | None, reason: str) -> None:
        self._note("dropped", row, reason=reason)
        if self._memory.seed in self._manager.seeds:
            self._say(CULL(seed=str(self._memory.seed)))
        self._not_paid()

    def _not_paid(self) -> None:
        """Rounds that brought nothing, one after the other, end it, unless the moments were given."""
        if self._memory.stopped:
            return self._end("it was stopped")
        self._memory.unpaid += 1
        more = self._clock.has_more(self._memory)
        if more or (more is None and self._memory.unpaid < self._course.patience):
            self._wait_again()
        else:
            self._end("the last round did not pay")
        return None

    def _end(self, reason: str) -> None:
        self._note("done", None, reason=reason)
        self._memory.phase = DONE

    def _say(self, command: Command) -> Reply:
        reply = self._manager.carry_out(command)
        if reply.refused:
            logger.warning("autogrow: %s was refused: %s", type(command).__name__, reply.reason)
        return reply

    def _note(
        self, what: str, row: Row | None, *, contribution: float | None = None, reason: str = ""
    ) -> None:
        tried = self._memory.row if what in ("kept", "dropped", "deepening") else None
        known = (row.to_dict() if row is not None else tried) or {}
        entry = {name: known.get(name) for name in ("slot", "blueprint", "parameters")}
        gained = contribution if contribution is not None or row is None else row.contribution
        self._memory.history.append(
            {
                "step": self._manager.steps,
                "what": what,
                **entry,
                "seed": self._memory.seed if known else None,
                "contribution": gained,
                "reason": reason,
            }
        )

    def _parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._manager.host.host_parameters())


def _mean(evaluate: Evaluate) -> float:
    return statistics.fmean(numbers(evaluate()))
