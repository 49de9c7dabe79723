"""A growth of channels that is planned: for the end of an act, or for when its code is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from torch.optim import Optimizer

from fxgraft.host.host import Host
from fxgraft.resizing.widening import PreparedWidening, Widening, plan, widen


@dataclass(eq=False)
class PlannedWidening:
    """One growth, as a part of a change.

    Attributes:
        host: the host.
        widening: what was asked for; says what became of it.
        optimizer_state: of new entries.
        optimizers: that train the host.
        key: gives the key of the new weights' random streams, as the host is then.
        tell: called with what was done, once it is final.
    """

    host: Host
    widening: Widening
    optimizer_state: str
    optimizers: Sequence[Optimizer]
    key: Callable[[], int]
    tell: Callable[[dict[str, Any]], None]

    _prepared: PreparedWidening | None = None
    _done: Widening | None = None

    @property
    def words(self) -> str:
        """Which channels grow, and by how many."""
        return f"the growth of {self.widening.group} by {self.widening.by} channels"

    def plan(self) -> bool:
        """Find out what the wider tensors are made of, if that is not known of the host as it is."""
        if self._prepared is not None and self._prepared.is_of(self.host):
            return False
        asked = self.widening
        self._prepared = plan(self.host, asked.group, asked.by, asked.init, self.key())
        return True

    def dry_run(self, undo: ExitStack) -> None:
        """Add the channels, to be undone at once."""
        self._widen(undo, is_dry_run=True)

    def carry_out(self, undo: ExitStack) -> None:
        """Add the channels; what was found out is used the next time, if this is reverted."""
        self._done = self._widen(undo, is_dry_run=False)

    def _widen(self, undo: ExitStack, is_dry_run: bool) -> Widening:
        asked = self.widening
        done, self._prepared = widen(
            self.host,
            asked.group,
            asked.by,
            asked.init,
            self.optimizer_state,
            self.optimizers,
            self.key(),
            outer=undo,
            prepared=self._prepared,
            is_dry_run=is_dry_run,
        )
        return done

    def completed(self) -> None:
        """The change was applied."""
        assert self._done is not None
        self.widening.__dict__.update(vars(self._done))
        self._prepared = None
        self.tell({name: value for name, value in asdict(self._done).items() if name != "failed"})

    def failed(self, reason: str) -> None:
        """The change has failed."""
        self.widening.failed, self._prepared = reason, None
