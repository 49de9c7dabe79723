"""Automatic growth: explores when it is time, keeps what helps, within a budget, until nothing helps.

    waiting    for the loss to be flat, for a share of the run, or for what a function says
    exploring  the candidates that the budget has room for; the best by the score stays
    trying     it is blended in; or, where what it learnt in isolation does not help, it is replaced by
               a new branch that adds nothing at first, and learns with the host
    judging    held, it is measured: what helps becomes a part of the host, what does not is taken out
    done       the budget is spent, or a round did not pay, or all shares of the run are over

All that changes the host is a command, so a log of commands makes the run again, to the bit where winners
begin anew. What one has learnt in isolation is not in the log: no command says that the candidates of an
exploration keep their initial parameters for its first half.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fxgraft import commands
from fxgraft.commands import DEEPEN, SEED
from fxgraft.errors import FxGraftError
from fxgraft.explore import _memory, scoring
from fxgraft.explore._clock import Clock
from fxgraft.explore._cost import CountedEvaluation, GrowthCost
from fxgraft.explore._depths import block_of
from fxgraft.explore._fitting import NothingCanGrowError
from fxgraft.explore._growth_state import DONE, EXPLORING, FADING, TRYING, WAITING, GrowthState
from fxgraft.explore._restoring import restoring
from fxgraft.explore._rounds import Rounds
from fxgraft.explore._summary import text_of
from fxgraft.explore._trial import GrowthTrial
from fxgraft.explore.candidates import AUTO, Choice, find
from fxgraft.explore.exploration import Exploration
from fxgraft.explore.growth_settings import Budget, GrowthSettings, When
from fxgraft.explore.measuring import Checked, Evaluate, evaluate_host, finite
from fxgraft.explore.scoring import Score
from fxgraft.explore.table import LEARNING
from fxgraft.util.text import pluralize

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager


class AutoGrowth:
    """An automatic growth, from `SeedManager.autogrow`. ``manager.step(loss)`` runs it; print it to see it.

    Args:
        manager: the manager that it grows with.
        evaluate: as of `SeedManager.autogrow`, and so are the following.
        candidates: ``"auto"``, a selection of slots, SEED commands, or one DEEPEN command.
        budget: how many times its parameters the host may have in the end; or a mapping with factors of
            ``parameters``, ``flops`` and ``memory``.
        when: ``"flat"``, shares of the run (0 to 1), or a function of the manager: whether it is time.
        total_steps: the length of the training in steps, for shares of it; else None.
        names: blueprints to try; None: those that fit.
        score: the name of the ranking of candidates, or a function.
        settings: the lengths of its parts, in training steps.

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
        settings: GrowthSettings,
    ):
        began = time.perf_counter()
        self._manager, self._evaluate = manager, CountedEvaluation(evaluate)
        self._block = block_of(manager.host, candidates)
        self._candidates: Choice = AUTO if isinstance(candidates, DEEPEN) else candidates
        self._names, self._score, self._settings = names, score, settings
        scoring.resolve(score)
        self._budget = Budget.of(budget)
        clock = Clock(manager, self._evaluate, settings, when, total_steps)
        bare = finite(evaluate_host(manager.host, evaluate))
        self._evaluate.calls = 1
        if self._budget.flops is not None and bare.flops is None:
            raise ValueError("budget: the FLOPs of this host are not known; expected a budget of parameters")
        state = GrowthState(
            flops=bare.flops,
            evaluation=bare.evaluation,
            first=statistics.fmean(bare.losses),
            memory=_memory.of_host(manager.host),
        )
        self._rounds = Rounds(manager, self._evaluate, settings, clock, state)
        self._memory.parameters = self._rounds.parameters
        self._cost = GrowthCost(manager.host, self._evaluate)
        self._trial = GrowthTrial(self._rounds, self._budget)
        most = self._room(bare.flops)  # what can never grow within the budget is an error now
        if self._block is None:
            find(manager.host, self._candidates, names, _cap(most), bare.flops, most)
        else:
            self._trial.row_of(self._block, most)
        self.exploration: Exploration | None = None
        self._cost.timed(began, 0.0)

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

    @property
    def cost(self) -> dict[str, Any]:
        """What the growth has cost so far beside the training, in JSON types.

        ``explored`` and ``tried`` are FLOPs of training steps of candidates, in isolation and on trial, for
        batches as large as in the step in which the growth looked; a step counts as three forward passes.
        ``evaluated`` are those of ``evaluations`` calls of ``evaluate``, each as one of the host by itself;
        None where they are not known. ``training_steps``: the steps that the host of the beginning could
        have made for all three; None where its FLOPs are not known. ``complete``: whether all FLOPs are
        known; see `Row`. ``seconds`` of evaluations and changes, without the longer training steps, and
        without those before a load. With several ranks each has its own.
        """
        return self._cost.to_dict(self._memory)

    def __str__(self) -> str:
        memory = self._memory
        sizes = {"parameters": self._rounds.parameters / max(memory.parameters, 1)}
        if memory.flops and memory.grown:
            sizes["flops"] = memory.grown / memory.flops
        if self._budget.memory is not None:
            sizes["memory"] = self._bytes / max(memory.memory, 1)
        return text_of(memory, self._budget, self._manager.steps, sizes, self.cost)

    __repr__ = __str__

    def state_dict(self) -> dict[str, Any]:
        """Its state, in JSON types. `SeedManager.save` saves it as well."""
        memory = self._memory
        self._rounds.clock.settle(memory)
        self._cost.settle(memory)
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
        with restoring("growth", "autogrow", FxGraftError):
            given = dict(state)
            exploration = given.pop("exploration")
            memory = GrowthState(**given)
            if exploration is not None:
                seeds = [commands.parse(entry["command"]) for entry in exploration["entries"]]
                self.exploration = self._manager.explore(
                    [seed for seed in seeds if isinstance(seed, SEED)],
                    evaluate=self._evaluate,
                    steps=self._settings.explore,
                    keep=1,
                    score=self._score,
                    state=exploration,
                )
        self._rounds.memory = memory
        self._evaluate.calls = 0
        if self.exploration is not None:
            self._cost.explores(memory, self.exploration.table)
        self._rounds.clock.begin(memory)

    def stop(self) -> None:
        """End the growth: candidates are culled now, a seed on trial is blended out, what was kept stays.

        The changes are commands, like all others. A CULL of the seed on trial ends a growth, too. With
        several ranks each has to call it.

        Raises:
            StageError: inside of an evaluation.
        """
        self._manager._refuse_while_borrowed("stop the growth")
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
        began, evaluated = time.perf_counter(), self._cost.evaluated_seconds
        try:
            self._step(loss)
        except BaseException as error:  # it goes on no more, and says so; what is in the host stays there
            if not self.done:
                self._rounds.end(f"it failed: {type(error).__name__}: {error}")
            raise
        finally:
            self._cost.settle(self._memory)
            self._cost.timed(began, evaluated)
            if self.done:
                self._cost.end()

    def _step(self, loss: float | Tensor | None) -> None:
        clock, memory = self._rounds.clock, self._memory
        clock.see(loss)
        self._cost.step(memory, memory.phase == EXPLORING, memory.phase in (TRYING, FADING))
        match memory.phase:
            case "waiting":
                if clock.is_time(memory, loss):
                    self._explore(clock.looked or evaluate_host(self._manager.host, self._evaluate))
            case "exploring":
                if self.exploration is not None and self.exploration.done:
                    self._choose(self.exploration)
            case "trying":
                self._trial.judge()
            case "fading":
                self._trial.fade()

    def _explore(self, looked: Checked) -> None:
        """Begin a round.

        Args:
            looked: what the evaluation says of the host as it is.
        """
        bare = self._memory.bare = looked.flops
        self._memory.evaluation = looked.evaluation or self._memory.evaluation
        try:
            most = self._room(bare)
            if self._block is not None:
                return self._trial.begin_block(self._block, most, looked)
            self.exploration = self._manager._explore_from(
                looked,
                self._candidates,
                self._evaluate,
                steps=self._settings.explore,
                keep=1,
                blueprints=self._names,
                score=self._score,
                cap=_cap(most),
                most=most,
                exclude=self._memory.failed,
            )
        except NothingCanGrowError:
            return self._rounds.end("nothing else fits in the budget")
        except (ValueError, FxGraftError) as error:
            return self._rounds.end(str(error))
        self._cost.explores(self._memory, self.exploration.table)
        tried = sum(row.status == LEARNING for row in self.exploration.table)
        self._rounds.note("exploring", reason=pluralize(tried, "candidate"))
        self._memory.phase = EXPLORING
        return None

    def _room(self, bare: int | None) -> dict[str, int]:
        """What the budget has left beside a host of so many FLOPs. Raises `ValueError` if that is nothing."""
        memory, budget, most = self._memory, self._budget, {}
        if budget.parameters is not None:
            most["parameters"] = _times(budget.parameters, memory.parameters) - self._rounds.parameters
        if budget.flops is not None and bare is not None:
            most["flops"] = _times(budget.flops, (memory.flops or 0)) - bare
        if budget.memory is not None:
            most["memory"] = _times(budget.memory, memory.memory) - self._bytes
        if spent := [name for name, room in most.items() if room < 1]:
            raise ValueError(
                f"the budget is spent: expected room for a parameter, a FLOP or a byte more; the host has "
                f"all of {', '.join(f'{getattr(budget, name):g} times the {name}' for name in spent)}. "
                f"To grow on, allow more"
            )
        return most

    @property
    def _bytes(self) -> int:
        """What training the host takes now, see `fxgraft.explore._memory`."""
        return _memory.of_host(self._manager.host) + self._memory.values

    def _choose(self, exploration: Exploration) -> None:
        """Try the best."""
        best = exploration.best(1)
        if best:
            return self._trial.begin(best[0])
        reasons = [row.reason for row in exploration.table if row.reason]
        return self._rounds.end(f"nothing could be measured: {reasons[0] if reasons else 'no candidate'}")


def _times(factor: float, size: int) -> int:
    """So many times a size, which may be more than there is a number for."""
    return int(min(factor * size, sys.maxsize))


def _cap(most: Mapping[str, int]) -> dict[str, int]:
    """Candidates that learn side by side take memory together; parameters and FLOPs stay of one of them."""
    return {"memory": most["memory"]} if "memory" in most else {}
