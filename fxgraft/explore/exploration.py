"""An exploration: many isolated candidates learn beside the host, are measured, ranked and taken out again.

manager.explore(...)      all germinate in one act
manager.step() x steps    for half of these, at most 50, they stand as they were born, and their gradients
                          are gathered; then they learn. The host does not feel them
the last of these         each is measured alone, all are ranked, all but the best are culled
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxgraft import commands
from fxgraft.commands import DEEPEN, SEED, WIDEN
from fxgraft.errors import CheckpointError, FxGraftError
from fxgraft.explore.candidates import Candidate, Found
from fxgraft.explore.depths import Depth
from fxgraft.explore.gradients import BirthGradients
from fxgraft.explore.measuring import Evaluate, Measured, contributions, step_ms
from fxgraft.explore.scoring import Ranking, rank_of
from fxgraft.explore.table import FAILED, LEARNING, LEFT_OUT, MEASURED, Row, text_of
from fxgraft.explore.widths import Width
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.telemetry.events import logger
from fxgraft.util.text import pluralize

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager
    from fxgraft.manager.reporter import Reporter

LONGEST_BIRTH = 50
"""Steps: more gradients tell little more."""


@dataclass(frozen=True)
class Settings:
    """How a host is explored; as the arguments of `SeedManager.explore`."""

    steps: int
    keep: int
    at: float
    repeats: int

    @property
    def born(self) -> int:
        """For how many steps the candidates stand as they were born."""
        return min(self.steps // 2, LONGEST_BIRTH)


@dataclass
class _Entry:
    """A candidate, and what became of it so far."""

    command: SEED
    candidate: Candidate | None
    seed: str | None = None
    status: str = LEARNING
    reason: str = ""
    found: Measured = field(default_factory=Measured)
    step_cost: float | None = None
    expected: float | None = None
    gradient: float | None = None
    trained_steps: int = 0
    score: float | None = None
    widens: tuple[str, int] | None = None

    def row(self) -> Row:
        return Row(
            slot=self.command.slot,
            blueprint=self.command.blueprint if self.widens is None else "widen",
            parameters=None if self.candidate is None else self.candidate.parameters,
            flops=None if self.candidate is None or self.depth is not None else self.candidate.flops,
            contribution=self.found.contribution,
            standard_error=self.found.standard_error,
            score=self.score,
            step_cost=self.step_cost,
            expected=self.expected,
            gradient=self.gradient,
            trained_steps=self.trained_steps,
            status=self.status,
            reason=self.reason,
            seed=self.seed,
            command=self._grows,
            widens=self.widens,
            deepens=None if self.depth is None else (self.depth.stack, self.depth.at),
        )

    @property
    def _grows(self) -> SEED | WIDEN | DEEPEN:
        if self.widens is not None:
            return WIDEN(group=self.widens[0], by=self.widens[1])
        if self.depth is not None:
            return DEEPEN(stack=self.depth.stack, at=[self.depth.at])
        return self.command

    @property
    def depth(self) -> Depth | None:
        return None if self.candidate is None else self.candidate.depth

    def fail(self, reason: str) -> None:
        self.status, self.reason = FAILED, reason


class Exploration:
    """What `SeedManager.explore` returns; ``manager.step()`` drives it. Print it for a table.

    Attributes:
        done: whether it is over: measured, or given up.
    """

    def __init__(
        self,
        manager: SeedManager,
        lifecycle: Lifecycle,
        reporter: Reporter,
        found: Found,
        evaluate: Evaluate,
        score: Ranking,
        settings: Settings,
    ):
        self._manager, self._lifecycle, self._reporter = manager, lifecycle, reporter
        self._evaluate, self._score, self._settings = evaluate, score, settings
        self._entries = [_Entry(one.command, one, widens=_widens(one.width)) for one in found.candidates]
        self._left_out = [
            _Entry(seed, one, status=LEFT_OUT, reason=why, widens=_widens(one.width) if one else None)
            for seed, one, why in found.left_out
        ]
        self._began, self._steps = manager.steps, 0
        self._births: dict[str, BirthGradients] = {}
        self.done = False

    # What it found

    @property
    def table(self) -> list[Row]:
        """A row for each candidate: those measured by their rank, then those that failed or were left out."""
        measured = [entry for entry in self._entries if entry.status == MEASURED]
        measured.sort(key=lambda entry: -rank_of(entry.score))
        others = [entry for entry in self._entries if entry.status != MEASURED]
        return [entry.row() for entry in (*measured, *others, *self._left_out)]

    def best(self, n: int = 1) -> list[Row]:
        """The ``n`` rows with the best scores, of those that were measured; fewer where there are fewer."""
        return [row for row in self.table if row.status == MEASURED][:n]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "done": self.done,
            "began": self._began,
            "steps": self._steps,
            "of": self._settings.steps,
            "rows": [row.to_dict() for row in self.table],
        }

    def to_json(self) -> dict[str, Any]:
        """The same as `to_dict`."""
        return self.to_dict()

    def __str__(self) -> str:
        learning = sum(entry.status == LEARNING for entry in self._entries)
        state = (
            f"{sum(entry.status == MEASURED for entry in self._entries)} measured, "
            f"{sum(entry.status == FAILED for entry in self._entries)} failed"
            if self.done
            else f"{learning} learning, step {self._steps} of {self._settings.steps}"
        )
        head = f"exploration of {pluralize(len(self._entries), 'candidate')}: {state}"
        if self._left_out:
            head += f"; {len(self._left_out)} left out"
        return f"{head}\n{text_of(self.table)}"

    __repr__ = __str__

    # Its course

    def begin(self) -> None:
        """Germinate all candidates in one act."""
        if not self._manager.enabled:
            return self._end([], "seeds are disabled (SeedManager(enabled=False), FXGRAFT_DYNAMIC_SEEDS=0)")
        branches = [entry for entry in self._entries if entry.depth is None]
        replies = self._manager.carry_out_together([entry.command for entry in branches])
        for entry, reply in zip(branches, replies, strict=True):
            if reply.accepted:
                entry.seed = reply.seed
            else:
                entry.fail(reply.reason)
        self._insert([entry for entry in self._entries if entry.depth is not None])
        for entry in self._learning():
            self._hold(entry)
        if not self._learning():
            self.done = True
            reason = self._entries[0].reason
            logger.warning("nothing of the exploration could germinate: %s", reason)
        return None

    def _insert(self, entries: Sequence[_Entry]) -> None:
        """The blocks, isolated, in one act."""
        if not entries:
            return
        with self._manager.together():
            for entry in entries:
                assert entry.depth is not None
                try:
                    (seed,) = self._manager.deepen(entry.depth.stack, at=[entry.depth.at], isolated=True)
                    entry.seed = seed.name
                except FxGraftError as error:
                    entry.fail(f"{type(error).__name__}: {error}")

    def step(self, loss: object = None) -> None:
        """One training step more; the last one measures. Called by ``manager.step()``."""
        if self.done:
            return
        self._steps += 1
        for entry in self._learning():
            seed = self._manager.seeds.get(entry.seed or "")
            if seed is None or seed.stage is not Stage.TRAINING:
                what = "culled" if seed is None else f"{seed.stage.name} by somebody else"
                entry.fail(f"it was {what} before it was measured")
            elif (birth := self._births.get(seed.name)) is not None:
                birth.step()
                entry.gradient = birth.norm
                self._lifecycle.taken_back(seed)
        if self._births and self._steps >= self._settings.born:
            self._release()
        if self._steps >= self._settings.steps or not self._learning():
            self._finish()

    def _hold(self, entry: _Entry) -> None:
        """Let a candidate stand as it was born, for a while."""
        seed = self._manager.seeds.get(entry.seed or "")
        if self._steps < self._settings.born and seed is not None and seed.module is not None:
            self._births[seed.name] = BirthGradients(seed.module)

    def _release(self) -> None:
        """Let the candidates learn from now on."""
        for entry in self._entries:
            if (birth := self._births.get(entry.seed or "")) is not None:
                entry.expected = birth.end()
        self._births.clear()

    def cancel(self) -> None:
        """Give up: what still learns is culled."""
        self._end([], "the exploration was given up")

    def _finish(self) -> None:
        manager, settings = self._manager, self._settings
        seeds = {entry.seed: manager.seeds[entry.seed] for entry in self._learning() if entry.seed}
        try:
            found = contributions(
                manager.host,
                list(seeds.values()),
                self._evaluate,
                at=settings.at,
                repeats=settings.repeats,
                alone=manager.peers.folder is None,
                mean=manager.peers.mean,
                inactivity=self._lifecycle.inactivity,
            )
            for entry in self._learning():
                assert entry.seed is not None
                self._take_in(entry, seeds[entry.seed], found[entry.seed])
            self._rank()
        except BaseException as error:
            self._end([], f"measuring failed: {type(error).__name__}: {error}")
            raise
        ranked = [row.seed for row in self.best(len(self._entries))]
        self._end(manager.peers.share(ranked)[: settings.keep], "")

    def _take_in(self, entry: _Entry, seed: Seed, found: Measured) -> None:
        entry.trained_steps, entry.found = seed.trained_steps, found
        if found.contribution is None:
            return entry.fail(found.reason)
        if not seed.trained_steps and self._settings.steps > self._settings.born:
            return entry.fail(f"it was not trained: {seed.did_not_run or 'nothing updates its parameters'}")
        if entry.depth is None:  # a block is called with more than its slot's value
            entry.step_cost = step_ms(seed, self._manager.host.site(seed.slot, seed.source))
        entry.status = MEASURED
        return None

    def _rank(self) -> None:
        measured = [entry for entry in self._entries if entry.status == MEASURED]
        for entry, score in zip(measured, self._score([entry.row() for entry in measured]), strict=True):
            entry.score = None if score is None or math.isnan(score) else float(score)

    def _end(self, kept: Sequence[str | None], reason: str) -> None:
        """Cull all seeds but those, in one act."""
        self._release()
        self.done = True
        gone = []
        for entry in self._entries:
            seed = self._manager.seeds.get(entry.seed or "")
            if entry.status == LEARNING:
                entry.fail(reason)
            if seed is not None and seed.stage is Stage.TRAINING and entry.seed not in kept:
                gone.append(seed.name)
        with self._manager.no_cooldown():
            self._manager.carry_out_together([commands.CULL(seed=name) for name in gone])
        self._reporter.emit("explored", steps=self._steps, rows=[row.to_dict() for row in self.table])

    def _learning(self) -> list[_Entry]:
        return [entry for entry in self._entries if entry.status == LEARNING]

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in JSON types and tensors; its seeds are in the manager's checkpoint."""
        return {
            "steps": self._steps,
            "began": self._began,
            "entries": [
                {
                    "command": commands.to_dict(entry.command),
                    **{name: getattr(entry, name) for name in _KEPT},
                    "birth": birth.state() if (birth := self._births.get(entry.seed or "")) else None,
                }
                for entry in self._entries
            ],
        }

    def go_on(self, state: Mapping[str, Any]) -> None:
        """In the place of `begin`: the seeds are there already, as ``state`` says.

        Raises:
            CheckpointError: they are not.
        """
        self._steps, self._began = state["steps"], state["began"]
        for entry, saved in zip(self._entries, state["entries"], strict=True):
            if commands.to_dict(entry.command) != saved["command"]:
                raise CheckpointError(f"the exploration was one of other candidates: {saved['command']}")
            for name in _KEPT:
                setattr(entry, name, saved[name])
            if entry.status == LEARNING and entry.seed not in self._manager.seeds:
                raise CheckpointError(f"the exploration's seed {entry.seed!r} is not in the checkpoint")
            if saved["birth"] is not None:
                self._hold(entry)
                self._births[str(entry.seed)].go_on(saved["birth"])


def _widens(width: Width | None) -> tuple[str, int] | None:
    return None if width is None else (width.group, width.by)


_KEPT = ("seed", "status", "reason", "expected", "gradient", "widens")
"""What a checkpoint says of a candidate, beside its command."""
