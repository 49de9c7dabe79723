"""A controller that repeats a log: the same commands at the same steps."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fxgraft.commands import Command, Reply
from fxgraft.errors import CommandError
from fxgraft.training.controller import Facts
from fxgraft.training.controller_log import Entry, read_log


class Replay:
    """A controller that repeats recorded commands and measurements, and checks that the results are the same.

    With the model, the data and the random seed of the recorded run the new run is the same, bit for bit.

    Args:
        entries: the entries of a recorded run.

    Raises:
        CommandError: in the training step where a reply or a measurement differs from the recorded one.
    """

    def __init__(self, entries: Iterable[Entry]):
        self._entries: dict[int, list[Entry]] = {}
        for entry in entries:
            self._entries.setdefault(entry.step, []).append(entry)
        self._expected: list[Entry] = []

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Replay:
        """Read the log that a `Recorder` wrote.

        Args:
            path: the file.

        Raises:
            CommandError: the file is not such a log.
        """
        return cls(read_log(path))

    def observe(self, facts: Facts) -> Sequence[Command]:
        """The commands recorded at this step. Measurements are made again: gates may need them.

        Args:
            facts: the step, its loss, and the seeds after it.

        Raises:
            CommandError: a measurement differs from the recorded one.
        """
        entries = self._entries.get(facts.step, [])
        for entry in entries:
            if entry.measured is not None:
                seed, at, recorded = entry.measured
                _compare(facts.step, f"the contribution of {seed!r}", recorded, facts.measure(seed, at))
        self._expected = [entry for entry in entries if entry.command is not None]
        return [entry.command for entry in self._expected if entry.command is not None]

    def hear(self, command: Command, reply: Reply) -> None:
        """Compare the reply with the recorded one.

        Args:
            command: one that `observe` returned.
            reply: what came of it in this run.

        Raises:
            CommandError: the reply differs from the recorded one.
        """
        recorded = self._expected.pop(0)
        assert recorded.reply is not None
        what = f"the reply to {type(command).__name__} ({reply.reason})"
        then, now = ((r.accepted, r.seed) for r in (recorded.reply, reply))
        _compare(recorded.step, what, then, now)

    def state_dict(self) -> dict[str, Any]:
        """An empty dictionary: the log is its only state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: the log is its only state.

        Args:
            state: is ignored.
        """


def _compare(step: int, what: str, recorded: Any, found: Any) -> None:
    lost = isinstance(recorded, float) and not math.isfinite(recorded) and not math.isfinite(found)
    if recorded != found and not lost:
        raise CommandError(
            f"step {step}: expected {what} to be as recorded, {recorded!r}; got {found!r}. "
            f"The replayed run has another model, data or random seed than the recorded one"
        )
