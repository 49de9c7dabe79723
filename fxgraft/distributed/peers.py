"""The ranks that train one host together, as the manager sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from fxgraft.commands import Command, Reply
from fxgraft.commands.inbox import Inbox
from fxgraft.lifecycle.change import Birth

if TYPE_CHECKING:  # it imports much of torch.distributed, which few need
    from fxgraft.distributed._dcp import Folder

Order = tuple[Command, Future[Reply] | None]
"""A command, and what waits for its reply on this rank."""


class Peers(Protocol):
    """The ranks. `settle`, `average`, `share`, `mean` wait for the others: all ranks call them, or none."""

    rank: int
    size: int
    folder: Folder | None
    """What saves a sharded host; None for a host that is whole in each process."""

    def all_say(self, topic: str, value: Any = True) -> bool:
        """Say it; return whether all ranks said the same in the last exchange."""

    def anyone_says(self, topic: str, value: str | None) -> str | None:
        """Say it, where there is something to say; return what the first rank said that did."""

    def leader_says(self, topic: str, value: Any) -> Any:
        """Say it; return what rank 0 said in the last exchange, or None. It stays until `withdraw`."""

    def withdraw(self) -> None:
        """Take back what was said since the last exchange."""

    def settle(self) -> None:
        """Have heard the others since the last step. Raises `DistributedError` if their states differ."""

    def average(self) -> bool:
        """At the end of a backward pass: average the seeds' gradients; False while they accumulate."""

    def orders(self, inbox: Inbox) -> Iterator[Order]:
        """The commands to carry out now, on every rank, in order."""

    def share(self, value: Any) -> Any:
        """The value of rank 0, of JSON types."""

    def mean(self, value: float) -> float:
        """The mean over the ranks."""

    def distribute(self, birth: Birth) -> Callable[[], None]:
        """Bring the parameters of a seed that goes live onto the ranks; returns what undoes it."""


class Alone:
    """One process: agrees with itself."""

    rank, size = 0, 1
    folder: Folder | None = None

    def all_say(self, topic: str, value: Any = True) -> bool:
        return True

    def anyone_says(self, topic: str, value: str | None) -> str | None:
        return value

    def leader_says(self, topic: str, value: Any) -> Any:
        return value

    def withdraw(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def average(self) -> bool:
        return True

    def orders(self, inbox: Inbox) -> Iterator[Order]:
        yield from inbox.take()

    def share(self, value: Any) -> Any:
        return value

    def mean(self, value: float) -> float:
        return value

    def distribute(self, birth: Birth) -> Callable[[], None]:
        return lambda: None
