"""An exploration: many isolated candidates learn beside the host, are measured, ranked and taken out again.

manager.explore(...)      all germinate: branches in one act, then blocks
manager.step() x steps    for half of these, at most 50, they keep their initial parameters, and their
                          gradients are summed up; then they learn. The host does not change
the last of these         each is measured alone, all are ranked, all but the best are culled
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxgraft import commands
from fxgraft.explore._candidate_state import CandidateState, restore
from fxgraft.explore._fitting import Found
from fxgraft.explore._germinating import germinate
from fxgraft.explore._gradients import InitialGradients
from fxgraft.explore._outcome import measure, rank
from fxgraft.explore._restoring import restoring
from fxgraft.explore.exploration_settings import ExplorationSettings
from fxgraft.explore.measuring import Evaluate
from fxgraft.explore.scoring import Ranking, rank_of
from fxgraft.explore.table import FAILED, LEARNING, LEFT_OUT, MEASURED, Row, text_of
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.seeds.stage import Stage
from fxgraft.telemetry.events import logger
from fxgraft.util import validate
from fxgraft.util.text import pluralize

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager
    from fxgraft.manager.reporter import Reporter

COLOURED_BY = ("contribution", "expected", "gradient", "score")
"""What the slots of a picture can be coloured by."""


class Exploration:
    """An exploration, from `SeedManager.explore`. ``manager.step()`` runs it; print it for a table.

    Args:
        manager: the manager that germinates the candidates.
        lifecycle: the transitions of its seeds.
        reporter: of its events.
        found: the candidates, and what was left out.
        evaluate: computes a loss, as of `SeedManager.explore`.
        score: the ranking of the measured candidates.
        settings: steps, measurements, and how many candidates are kept.

    Attributes:
        done: whether it has ended: measured, or cancelled.
    """

    def __init__(
        self,
        manager: SeedManager,
        lifecycle: Lifecycle,
        reporter: Reporter,
        found: Found,
        evaluate: Evaluate,
        score: Ranking,
        settings: ExplorationSettings,
    ):
        self._manager, self._lifecycle, self._reporter = manager, lifecycle, reporter
        self._evaluate, self._score, self._settings = evaluate, score, settings
        self._entries = [CandidateState.of(one.command, one) for one in found.candidates]
        self._left_out = [
            CandidateState.of(seed, one, status=LEFT_OUT, reason=why) for seed, one, why in found.left_out
        ]
        self._began, self._steps = manager.steps, 0
        self._frozen: dict[str, InitialGradients] = {}
        self.done = False

    # What it found

    @property
    def table(self) -> list[Row]:
        """A `Row` for each candidate: the measured ones by rank, then those failed or left out."""
        measured = [entry for entry in self._entries if entry.status == MEASURED]
        measured.sort(key=lambda entry: -rank_of(entry.score))
        others = [entry for entry in self._entries if entry.status != MEASURED]
        return [entry.row() for entry in (*measured, *others, *self._left_out)]

    def best(self, n: int = 1) -> list[Row]:
        """The measured rows with the best scores, best first.

        Args:
            n: how many; there are fewer if fewer were measured. Default 1.
        """
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
        return f"{self._head()}\n{text_of(self.table)}"

    def _head(self) -> str:
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
        return head

    __repr__ = __str__

    def __rich__(self) -> Any:
        """The table: ``rich.print(exploration)``; as it goes: ``with rich.live.Live(exploration): ...``."""
        from fxgraft.report.exploration_table import exploration_table  # on demand: an extra

        return exploration_table(self._head(), [row.to_dict() for row in self.table])

    def show(self, by: str = "contribution") -> Any:
        """The host as a picture, each slot in the colour of its best candidate.

        As `Host.show`: it shows itself in a notebook, and ``.save(path)`` writes SVG, PNG or HTML. Needs the
        extra ``show`` and graphviz.

        Args:
            by: the number to show: ``"contribution"``, ``"expected"``, ``"gradient"`` or ``"score"``.
                Green is above zero, red below.

        Raises:
            ValueError: ``by`` is none of these.
        """
        if by not in COLOURED_BY:
            raise ValueError(f"by: expected one of {', '.join(COLOURED_BY)}; got {by!r}")
        from fxgraft.report.host_picture import Picture  # on demand: an extra
        from fxgraft.report.marks import marks

        said = f"A slot has the colour of its best candidate's {by}: green above zero, red below."
        return Picture(self._manager.host, marks([row.to_dict() for row in self.table], by), said)

    # Its course

    def begin(self) -> None:
        """Germinate all candidates."""
        if not self._manager.enabled:
            return self._end([], "seeds are disabled (SeedManager(enabled=False), FXGRAFT_DYNAMIC_SEEDS=0)")
        germinate(self._manager, self._entries)
        for entry in self._learning():
            self._freeze(entry)
        if not self._learning():
            self.done = True
            reason = self._entries[0].reason
            logger.warning("nothing of the exploration could germinate: %s", reason)
        return None

    def step(self, loss: object = None) -> None:
        """Count one training step; the last one measures the candidates. Called by ``manager.step()``.

        Args:
            loss: is ignored.
        """
        if self.done:
            return
        self._steps += 1
        for entry in self._learning():
            seed = self._manager.seeds.get(entry.seed or "")
            if seed is None or seed.stage is not Stage.TRAINING:
                what = "culled" if seed is None else f"{seed.stage.name} from outside"
                entry.fail(f"it was {what} before it was measured")
            elif (frozen := self._frozen.get(seed.name)) is not None:
                frozen.step()
                entry.gradient = frozen.norm
                self._lifecycle.restart_training_count(seed)
        if self._frozen and self._steps >= self._settings.frozen_steps:
            self._unfreeze()
        if self._steps >= self._settings.steps or not self._learning():
            self._finish()

    def _freeze(self, entry: CandidateState) -> None:
        """Keep the parameters of a candidate at their initial values, for the first steps."""
        seed = self._manager.seeds.get(entry.seed or "")
        if self._steps < self._settings.frozen_steps and seed is not None and seed.module is not None:
            self._frozen[seed.name] = InitialGradients(seed.module)

    def _unfreeze(self) -> None:
        """Stop keeping initial parameters: the candidates learn from now on."""
        for entry in self._entries:
            if (frozen := self._frozen.get(entry.seed or "")) is not None:
                entry.expected = frozen.end()
        self._frozen.clear()

    def cancel(self) -> None:
        """Stop the exploration: its seeds are culled. Raises `StageError` inside of an evaluation."""
        self._manager._refuse_while_borrowed("cancel the exploration")
        self._end([], "the exploration was given up")

    def _finish(self) -> None:
        manager, settings = self._manager, self._settings
        try:
            measure(self._learning(), manager, self._lifecycle, self._evaluate, settings)
            rank([entry for entry in self._entries if entry.status == MEASURED], self._score, manager.peers)
        except BaseException as error:
            self._end([], f"measuring failed: {type(error).__name__}: {error}")
            raise
        ranked = [row.seed for row in self.best(len(self._entries))]
        self._end(manager.peers.share(ranked)[: settings.keep], "")

    def _end(self, kept: Sequence[str | None], reason: str) -> None:
        """Cull all seeds but those, in one act."""
        self._unfreeze()
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

    def _learning(self) -> list[CandidateState]:
        return [entry for entry in self._entries if entry.status == LEARNING]

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Its state, in JSON types and tensors. Its seeds are in the checkpoint of the manager."""
        return {
            "steps": self._steps,
            "began": self._began,
            "entries": [
                {
                    **entry.state(),
                    "birth": frozen.state() if (frozen := self._frozen.get(entry.seed or "")) else None,
                }
                for entry in self._entries
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, instead of `begin`: the manager has the seeds already.

        Args:
            state: what `state_dict` returned.

        Raises:
            CheckpointError: the state is damaged, or one of other candidates; or the manager does not have
                these seeds.
        """
        with restoring("exploration", "explore"):
            self._steps = validate.integer("steps", state["steps"])
            self._began = validate.integer("began", state["began"])
            restore(self._entries, saved := list(state["entries"]), self._manager.seeds)
            self._freeze_again([one["birth"] for one in saved])

    def _freeze_again(self, births: Sequence[Mapping[str, Any] | None]) -> None:
        """As `_freeze`, with what the gradients were summed up to; not at all where one is damaged."""
        try:
            for entry, birth in zip(self._entries, births, strict=True):
                if birth is None:
                    continue
                self._freeze(entry)
                if (frozen := self._frozen.get(str(entry.seed))) is None:
                    raise ValueError(
                        f"its candidates kept their initial values until step {self._steps}, which they do "
                        f"not with steps={self._settings.steps}"
                    )
                frozen.restore(birth)
        except BaseException:
            for frozen in self._frozen.values():
                frozen.end()  # its hooks go
            raise
