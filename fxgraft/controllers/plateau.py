"""Plateau-driven growth, with keep or cull by measured contribution.

    loss flat -> SEED at the best places, side by side: isolated, they do not feel each other
              -> after N isolated steps each is measured at alpha 1
              -> the best, if it makes the loss no worse: BLEND; the others: CULL
              -> held, measured again: worth keeping: FOSSILIZE; not: fade out (BLEND to 0) and CULL

Places are ranked by measurement alone. Those never tried come first, as given; those tried follow in
the order of what they contributed. A first-order prediction costs less, and is wrong by orders of
magnitude.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxgraft.commands import BLEND, CULL, FOSSILIZE, SEED, Command, Reply
from fxgraft.controllers.base import Facts, SeedFacts
from fxgraft.seeds.stage import Stage
from fxgraft.util import validate


@dataclass(frozen=True)
class GrowthConfig:
    """When to grow, for how long, and what to keep. Durations are in training steps.

    Attributes:
        window: the loss is flat or not by the means of two consecutive windows of this length.
        isolate, blend, hold, fade: how long a seed trains isolated, is ramped up, is held, is ramped down. A
            seed that was not trained in so many steps is judged after twice as many.
        rest: for how long a slot is not tried again after it refused a seed.
        flat: the loss is flat when the mean of a window is below that of the window before by less than this
            share of it.
        trials: how many seeds are tried at the same time.
        attempts: how many seeds are germinated in all.
        tolerance: by how much (in units of the loss) a seed may increase the loss and still be blended.
        keep: a blended seed stays if its contribution, in units of the loss, is above this.

    Raises:
        ValueError: a number is invalid.
    """

    window: int = 30
    isolate: int = 50
    blend: int = 50
    hold: int = 20
    fade: int = 10
    rest: int = 30
    flat: float = 0.1
    trials: int = 2
    attempts: int = 8
    tolerance: float = 0.0
    keep: float = 0.0

    def __post_init__(self) -> None:
        for name in ("window", "isolate", "blend", "fade", "trials"):
            validate.integer(name, getattr(self, name), 1)
        for name in ("hold", "rest", "attempts"):
            validate.integer(name, getattr(self, name))
        for name in ("flat", "tolerance", "keep"):
            validate.number(name, getattr(self, name))


@dataclass
class _PlateauState:
    """What the controller remembers. Candidates are known by their index."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    attempts: int = 0
    candidate_of: dict[str, int] = field(default_factory=dict)  # the seeds that it germinated
    scores: dict[int, float] = field(default_factory=dict)
    rests_until: dict[int, int] = field(default_factory=dict)
    used: list[int] = field(default_factory=list)
    held_since: dict[str, int] = field(default_factory=dict)
    unwanted: list[str] = field(default_factory=list)  # to fade out first
    doomed: list[str] = field(default_factory=list)  # to cull now


class PlateauGrowth:
    """Grows where the loss is flat, and keeps what measurably helps.

    Args:
        candidates: what may be grown, as ``SEED`` commands without a ``name``.
        config: when, how long, and what to keep.

    Raises:
        ValueError: there is no candidate, or one has a name, which only one seed could have.
    """

    def __init__(self, candidates: Sequence[SEED], config: GrowthConfig | None = None):
        self._candidates = tuple(c for i, c in enumerate(candidates) if c not in candidates[:i])
        if not self._candidates:
            raise ValueError("candidates: expected one SEED command at least; got none: nothing could grow")
        for candidate in self._candidates:
            if candidate.name is not None:
                raise ValueError(f"candidates: expected SEED commands without a name; got {candidate.name!r}")
        self._config = config or GrowthConfig()
        self._memory = _PlateauState()

    @property
    def candidates(self) -> tuple[SEED, ...]:
        """What may be grown, without duplicates."""
        return self._candidates

    def observe(self, facts: Facts) -> Sequence[Command]:
        """Receive the facts of one more step; return the commands to carry out now."""
        memory = self._memory
        memory.step = facts.step
        memory.losses = [*memory.losses, facts.loss][-2 * self._config.window :]
        for seed in [name for name in memory.candidate_of if not _grows(name, facts)]:
            self._let_go(seed, -math.inf)  # it was removed otherwise, as a rule by a rollback
        if not memory.candidate_of:
            return self._look_for_room()
        if memory.doomed:
            return [CULL(seed=seed) for seed in memory.doomed]
        training = [s for s in memory.candidate_of if facts.seeds[s].stage is Stage.TRAINING]
        if training:
            ready = all(self._has_had_its_time(facts.seeds[s]) for s in training)
            return self._judge_trials(training, facts) if ready else []
        holding = [s for s in memory.candidate_of if facts.seeds[s].stage is Stage.HOLDING]
        return [command for seed in holding for command in self._judge_held(seed, facts)]

    def hear(self, command: Command, reply: Reply) -> None:
        """Receive the reply to a command. If it was refused, the controller tries something else."""
        memory = self._memory
        match command:
            case SEED() if reply.accepted and reply.seed is not None:
                memory.attempts += 1
                memory.candidate_of[reply.seed] = self._candidates.index(command)
            case SEED():
                memory.rests_until[self._candidates.index(command)] = memory.step + self._config.rest
            case BLEND() if reply.refused:
                memory.doomed.append(command.seed)
            case FOSSILIZE() if reply.accepted:
                memory.used.append(memory.candidate_of[command.seed])
                self._let_go(command.seed)
            case FOSSILIZE():
                memory.unwanted.append(command.seed)
            case CULL():  # the seed is not there any more
                self._let_go(command.seed)

    def state_dict(self) -> dict[str, Any]:
        """Its state as plain data."""
        return dataclasses.asdict(self._memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._memory = _PlateauState(**dataclasses.asdict(_PlateauState(**state)))  # a copy, not shared

    @property
    def is_flat(self) -> bool:
        """Whether the loss is flat, as `GrowthConfig` defines it."""
        window, losses = self._config.window, self._memory.losses
        if len(losses) < 2 * window:
            return False
        before, now = sum(losses[:window]), sum(losses[window:])
        return before - now < self._config.flat * abs(before)

    def _has_had_its_time(self, seed: SeedFacts) -> bool:
        # One that does not run, or that nothing trains, must not keep the others waiting for ever.
        isolate = self._config.isolate
        return seed.trained_steps >= isolate or seed.steps >= 2 * isolate

    def _look_for_room(self) -> list[Command]:
        memory = self._memory
        room = min(self._config.trials, self._config.attempts - memory.attempts)
        if room <= 0 or not self.is_flat:
            return []
        resting = {i for i, until in memory.rests_until.items() if memory.step < until}
        free = [i for i in range(len(self._candidates)) if i not in resting and i not in memory.used]
        ranked = sorted(free, key=lambda i: -memory.scores.get(i, math.inf))
        return [self._candidates[i] for i in ranked[:room]]

    def _judge_trials(self, trained: Sequence[str], facts: Facts) -> list[Command]:
        worth = {seed: self._measure(seed, 1.0, facts) for seed in trained}
        best = max(worth, key=lambda seed: worth[seed])
        said: list[Command] = [CULL(seed=seed) for seed in trained if seed != best]
        if worth[best] >= -self._config.tolerance:
            return [*said, BLEND(seed=best, steps=self._config.blend)]
        return [*said, CULL(seed=best)]

    def _judge_held(self, seed: str, facts: Facts) -> list[Command]:
        memory, alpha = self._memory, facts.seeds[seed].alpha
        if alpha == 0:
            return [CULL(seed=seed)]
        since = memory.held_since.setdefault(seed, facts.step)
        if seed not in memory.unwanted:
            if facts.step - since < self._config.hold:
                return []
            if self._measure(seed, alpha, facts) > self._config.keep:
                return [FOSSILIZE(seed=seed)]
        return [BLEND(seed=seed, to=0.0, steps=self._config.fade)]

    def _measure(self, seed: str, alpha: float, facts: Facts) -> float:
        """The contribution, remembered for the ranking; one that is no number counts as the worst."""
        found = facts.measure(seed, alpha)
        score = -math.inf if math.isnan(found) else found
        self._memory.scores[self._memory.candidate_of[seed]] = score
        return score

    def _let_go(self, seed: str, score: float | None = None) -> None:
        memory = self._memory
        candidate = memory.candidate_of.pop(seed, None)
        if candidate is not None and score is not None:
            memory.scores[candidate] = score
        memory.held_since.pop(seed, None)
        memory.unwanted = [name for name in memory.unwanted if name != seed]
        memory.doomed = [name for name in memory.doomed if name != seed]
        if not memory.candidate_of:
            memory.losses.clear()  # a plateau is judged anew: what the loss did with a seed says nothing


def _grows(seed: str, facts: Facts) -> bool:
    return seed in facts.seeds and facts.seeds[seed].stage is not Stage.FOSSILIZED
