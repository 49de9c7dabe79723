"""A controller for tests: it tries all its candidates at the same time, and keeps the best."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxgraft import Stage
from fxgraft.commands import BLEND, CULL, FOSSILIZE, SEED, Command, Reply
from fxgraft.controllers import Facts


@dataclass(frozen=True)
class Pace:
    """In training steps: before a round, isolated, blended in, held; and how many rounds there are."""

    begin: int = 10
    isolate: int = 8
    blend: int = 6
    hold: int = 3
    rounds: int = 2


class SideBySide:
    """All commands of a life are said by it: SEED, BLEND, CULL, FOSSILIZE."""

    def __init__(self, candidates: Sequence[SEED], pace: Pace = Pace()):
        self.candidates, self._pace = tuple(candidates), pace
        self._memory: dict[str, Any] = {"step": 0, "next": pace.begin, "rounds": 0, "mine": [], "held": None}

    def observe(self, facts: Facts) -> Sequence[Command]:
        memory, pace = self._memory, self._pace
        memory["step"] = facts.step
        memory["mine"] = [name for name in memory["mine"] if name in facts.seeds]
        seeds = {name: facts.seeds[name] for name in memory["mine"]}
        if not seeds:
            due = memory["rounds"] < pace.rounds and facts.step >= memory["next"]
            memory["rounds"] += due
            memory["next"] += pace.begin * due
            return self.candidates if due else ()
        if all(
            seed.stage is Stage.TRAINING and seed.trained_steps >= pace.isolate for seed in seeds.values()
        ):
            worth = {name: facts.measure(name, 1.0) for name in seeds}
            best = max(worth, key=lambda name: worth[name])
            return [*(CULL(seed=name) for name in seeds if name != best), BLEND(seed=best, steps=pace.blend)]
        (name, seed), *_ = seeds.items()
        if seed.stage is not Stage.HOLDING:
            return ()
        memory["held"] = memory["held"] or facts.step
        if facts.step < memory["held"] + pace.hold:
            return ()
        return [FOSSILIZE(seed=name) if facts.measure(name, 1.0) > 0 else CULL(seed=name)]

    def hear(self, command: Command, reply: Reply) -> None:
        memory = self._memory
        if isinstance(command, SEED) and reply.accepted:
            memory["mine"].append(reply.seed)
        elif isinstance(command, (CULL, FOSSILIZE)):
            memory["mine"].remove(command.seed)
            memory["next"], memory["held"] = memory["step"] + self._pace.begin, None

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self._memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._memory = copy.deepcopy(dict(state))
