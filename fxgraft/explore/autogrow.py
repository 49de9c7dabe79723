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

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fxgraft import commands
from fxgraft.commands import DEEPEN, SEED
from fxgraft.errors import CheckpointError, FxGraftError
from fxgraft.explore import scoring
from fxgraft.explore._clock import Clock
from fxgraft.explore._depths import block_of
from fxgraft.explore._growth_state import DONE, EXPLORING, TRYING, WAITING, GrowthState
from fxgraft.explore._rounds import Rounds
from fxgraft.explore._trial import GrowthTrial
from fxgraft.explore.candidates import AUTO, Choice, find
from fxgraft.explore.exploration import Exploration
from fxgraft.explore.measuring import Evaluate, check
from fxgraft.explore.scoring import Score
from fxgraft.explore.terms import Budget, Course, When
from fxgraft.util.tables import text_table

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager


class AutoGrowth:
    """An automatic growth, from `SeedManager.autogrow`. ``manager.step(loss)`` runs it; print it to see it.

    Args:
        manager: the manager that it grows with.
        evaluate: as of `SeedManager.autogrow`, and so are the following.
        candidates: ``"auto"``, a selection of slots, SEED commands, or one DEEPEN command.
        budget: how many times its parameters the host may have in the end; or a mapping with factors of
            ``parameters`` and ``flops``.
        when: ``"flat"``, shares of the run (0 to 1), or a function of the manager: whether it is time.
        total_steps: the length of the training in steps, for shares of it; else None.
        names: blueprints to try; None: those that fit.
        score: the name of the ranking of candidates, or a function.
        course: the lengths of its parts, in training steps.

    Raises:
        ValueError: a number is invalid, or the budget limits FLOPs, and those of this host are not known.
        SlotError, BlueprintError, CommandError, TypeError: as `SeedManager.autogrow`.

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
        clock = Clock(manager, evaluate, course, when, total_steps)
        bare = check(manager.host, evaluate)
        if self._budget.flops is not None and bare.flops is None:
            raise ValueError("budget: the FLOPs of this host cannot be told; expected a budget of parameters")
        self._rounds = Rounds(manager, evaluate, course, clock, GrowthState(flops=bare.flops))
        self._memory.parameters = self._rounds.parameters
        self._trial = GrowthTrial(self._rounds)
        most = self._room(bare.flops)  # what can never grow within the budget is an error now
        if self._block is None:
            find(manager.host, self._candidates, names, None, bare.flops, most)
        else:
            self._trial.row_of(self._block, most["parameters"])
        self.exploration: Exploration | None = None

    @property
    def _memory(self) -> GrowthState:
        return self._rounds.memory

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
        grown = self._rounds.parameters / max(memory.parameters, 1)
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
        self._rounds.clock.settle(memory)
        state = asdict(memory)
        exploring = memory.phase == EXPLORING and self.exploration is not None
        state["exploration"] = self.exploration.state_dict() if exploring and self.exploration else None
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. The manager must have the seeds of that moment: load it first.

        Args:
            state: what `state_dict` returned.

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
        self._rounds.memory = memory
        self._rounds.clock.begin(memory)

    def stop(self) -> None:
        """End the growth: candidates are culled now, a seed on trial is blended out, what was kept stays.

        The changes are commands, like all others. A CULL of the seed on trial ends a growth, too. With
        several ranks each has to call it.
        """
        phase, self._memory.stopped = self._memory.phase, True
        if phase == EXPLORING and self.exploration is not None:
            self.exploration.cancel()
        if phase == TRYING:
            self._trial.take_out("it was stopped")
        elif phase in (WAITING, EXPLORING):
            self._rounds.end("it was stopped")

    # Its course

    def step(self, loss: float | Tensor | None = None) -> None:
        """Count one training step. Called by ``manager.step(loss)``.

        Args:
            loss: the training loss of the step, which ``when="flat"`` watches; None: it is not known.
        """
        clock = self._rounds.clock
        clock.see(loss)
        match self._memory.phase:
            case "waiting":
                if clock.is_time(self._memory, loss):
                    self._explore()
            case "exploring":
                if self.exploration is not None and self.exploration.done:
                    self._choose(self.exploration)
            case "trying":
                self._trial.judge()
            case "fading":
                self._trial.fade()

    def _explore(self) -> None:
        bare = check(self._manager.host, self._evaluate).flops
        self._memory.bare = bare
        try:
            most = self._room(bare)
            if self._block is not None:
                return self._trial.begin_block(self._block, most["parameters"])
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
            return self._rounds.end(str(error))
        self._rounds.note("exploring", reason=f"{len(self.exploration.table)} candidates")
        self._memory.phase = EXPLORING
        return None

    def _room(self, bare: int | None) -> dict[str, int]:
        """What the budget has left beside a host of so many FLOPs. Raises `ValueError` if that is nothing."""
        memory = self._memory
        most = {"parameters": int(self._budget.parameters * memory.parameters) - self._rounds.parameters}
        if self._budget.flops is not None and bare is not None:
            most["flops"] = int(self._budget.flops * (memory.flops or 0)) - bare
        if min(most.values()) < 1:
            raise ValueError("the budget is spent")
        return most

    def _choose(self, exploration: Exploration) -> None:
        """Try the best."""
        best = exploration.best(1)
        if best:
            return self._trial.begin(best[0])
        reasons = [row.reason for row in exploration.table if row.reason]
        return self._rounds.end(f"nothing could be measured: {reasons[0] if reasons else 'no candidate'}")
