"""The ranks that train one host together, as the manager sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from fxgraft.commands import Command, Reply
from fxgraft.commands.inbox import Inbox
from fxgraft.lifecycle.change import Addition

if TYPE_CHECKING:  # it imports much of torch.distributed, which few need
    from fxgraft.distributed._dcp import Folder

Order = tuple[Command, Future[Reply] | None]
"""A command, and what waits for its reply on this rank."""


class Peers(Protocol):
    """The ranks. `settle`, `average`, `share`, `mean` wait for the others: all ranks call them, or none.

    What a rank sends in one step all have received in the next, each of them the same.
    """

    rank: int
    size: int
    folder: Folder | None
    """What saves a sharded host; None for a host that is whole in each process."""

    def send(self, topic: str, value: Any) -> None:
        """Tell all ranks, with the next exchange. ``value`` is of JSON types."""

    def received(self, topic: str) -> Sequence[Any]:
        """What each rank sent in the last exchange, None for one that sent nothing: the same on all ranks."""

    def withdraw(self, topic: str) -> None:
        """Take back what was sent to ``topic``, and forget what was received."""

    def settle(self) -> None:
        """Receive what the others have sent. Raises `DistributedError` if their states differ."""

    def average(self) -> bool:
        """At the end of a backward pass: average the seeds' gradients; False while they accumulate."""

    def orders(self, inbox: Inbox) -> Iterator[Order]:
        """The commands to carry out now, on every rank, in order."""

    def share(self, value: Any) -> Any:
        """The value of rank 0, of JSON types."""

    def mean(self, value: float) -> float:
        """The mean over the ranks."""

    def distribute(self, addition: Addition) -> Callable[[], None]:
        """Bring the parameters of a seed that goes live onto the ranks; returns what undoes it."""


class SingleProcess:
    """One process: receives at once what it sends, until the next step."""

    rank, size = 0, 1
    folder: Folder | None = None

    def __init__(self) -> None:
        self._said: dict[str, Any] = {}

    def send(self, topic: str, value: Any) -> None:
        self._said[topic] = value

    def received(self, topic: str) -> Sequence[Any]:
        return [self._said.get(topic)]

    def withdraw(self, topic: str) -> None:
        self._said.pop(topic, None)

    def settle(self) -> None:
        self._said = {}

    def average(self) -> bool:
        return True

    def orders(self, inbox: Inbox) -> Iterator[Order]:
        yield from inbox.take()

    def share(self, value: Any) -> Any:
        return value

    def mean(self, value: float) -> float:
        return value

    def distribute(self, addition: Addition) -> Callable[[], None]:
        return lambda: None


def with_rank(peers: Peers, rank: int, text: str) -> str:
    """``text``, and which rank it is from where there are several."""
    return f"rank {rank}: {text}" if peers.size > 1 else text
