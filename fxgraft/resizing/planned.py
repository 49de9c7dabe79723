"""A growth of channels that is planned: for the end of an act, or for when its code is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from torch.optim import Optimizer

from fxgraft.host.host import Host
from fxgraft.resizing.widening import Rehearsed, Widening, widen


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

    def carry_out(self, undo: ExitStack) -> None:
        """Let the channels grow; what is found out about that serves the next time, if it is taken back."""
        asked = self.widening
        self._done, self._rehearsed = widen(
            self.host,
            asked.group,
            asked.by,
            asked.init,
            self.optimizer_state,
            self.optimizers,
            self.key(),
            outer=undo,
            rehearsed=self._rehearsed,
        )

    def told(self) -> None:
        """It has landed."""
        assert self._done is not None
        self.widening.__dict__.update(vars(self._done))
        self._rehearsed = None
        self.tell({name: value for name, value in asdict(self._done).items() if name != "failed"})

    def failed(self, reason: str) -> None:
        """It comes to nothing."""
        self.widening.failed, self._rehearsed = reason, None
