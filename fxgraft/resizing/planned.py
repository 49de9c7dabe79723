"""A growth of channels that is planned: for the end of an act, or for when its code is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from torch.optim import Optimizer

from fxgraft.host.host import Host
from fxgraft.resizing.widening import Rehearsed, Widening, plan, widen


@dataclass(eq=False)
class PlannedWidening:
    """One growth, as a part of a change.

    Attributes:
        host: the host.
        widening: what was asked for; says what became of it.
        optimizer_state: of new entries.
        optimizers: that train the host.
        key: gives the key of the new weights' random streams, as the host is then.
        tell: is given what was done, once it stays.
    """

    host: Host
    widening: Widening
    optimizer_state: str
    optimizers: Sequence[Optimizer]
    key: Callable[[], int]
    tell: Callable[[dict[str, Any]], None]

    _rehearsed: Rehearsed | None = None
    _done: Widening | None = None

    @property
    def words(self) -> str:
        """Which channels grow, and by how many."""
        return f"the growth of {self.widening.group} by {self.widening.by} channels"

    def plan(self) -> bool:
        """Find out what the wider tensors are made of, if that is not known of the host as it is."""
        if self._rehearsed is not None and self._rehearsed.is_of(self.host):
            return False
        asked = self.widening
        self._rehearsed = plan(self.host, asked.group, asked.by, asked.init, self.key())
        return True

    def rehearse(self, undo: ExitStack) -> None:
        """Let the channels grow for a moment."""
        self._widen(undo, is_rehearsal=True)

    def carry_out(self, undo: ExitStack) -> None:
        """Let the channels grow; what is found out about that serves the next time, if it is taken back."""
        self._done = self._widen(undo, is_rehearsal=False)

    def _widen(self, undo: ExitStack, is_rehearsal: bool) -> Widening:
        asked = self.widening
        done, self._rehearsed = widen(
            self.host,
            asked.group,
            asked.by,
            asked.init,
            self.optimizer_state,
            self.optimizers,
            self.key(),
            outer=undo,
            rehearsed=self._rehearsed,
            is_rehearsal=is_rehearsal,
        )
        return done

    def told(self) -> None:
        """It has landed."""
        assert self._done is not None
        self.widening.__dict__.update(vars(self._done))
        self._rehearsed = None
        self.tell({name: value for name, value in asdict(self._done).items() if name != "failed"})

    def failed(self, reason: str) -> None:
        """It comes to nothing."""
        self.widening.failed, self._rehearsed = reason, None
