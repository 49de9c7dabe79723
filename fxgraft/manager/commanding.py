"""Commands to a manager, from any thread; `dispatch` carries them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from fxgraft.commands import Command, Reply
from fxgraft.manager.core import ManagerCore
from fxgraft.util.interrupts import uninterruptible

_FOR_RANK_0 = "commands are given to rank 0, which tells the others"


@uninterruptible
def handle(self: ManagerCore, command: Command | Mapping[str, Any] | str | bytes) -> Reply:
    """Carry out one command, as an object, a dictionary or JSON. Never raises: the reply says.

    From another thread than the one that trains it is only taken in: it is carried out at the end of the
    next `step`, and the reply is ``queued``. `submit` gives the final one. On several ranks that is so
    for each command on rank 0, and it is carried out on all; other ranks refuse.
    """
    if self.peers.rank:
        return Reply(False, _FOR_RANK_0)
    is_now = self._inbox.is_here and self.peers.size == 1
    return self._dispatcher.handle(command, None if is_now else self._inbox)


@uninterruptible
def carry_out(self: ManagerCore, command: Command) -> Reply:
    """As `handle`, but at once and on this rank: for what every rank decides alike."""
    self._inbox.require_here("carry out a command")
    return self._dispatcher.handle(command)


def submit(self: ManagerCore, command: Command | Mapping[str, Any] | str | bytes) -> Future[Reply]:
    """Let a command wait for the end of the next `step`; from any thread.

    Commands are carried out in the order in which they came, each once.

    Returns:
        The reply to come. ``future.cancel()`` takes the command back while it waits. Give
        ``future.result(timeout)`` a timeout: a training that has ended carries nothing out.
    """
    if self.peers.rank:
        refused: Future[Reply] = Future()
        refused.set_result(Reply(False, _FOR_RANK_0))
        return refused
    return self._dispatcher.submit(command, self._inbox)


def carry_out_together(self: ManagerCore, orders: Sequence[Command]) -> list[Reply]:
    """As `carry_out`, several in one act; where that cannot land as a whole, one by one."""
    self._inbox.require_here("carry out commands")
    waiting: list[tuple[Command, Future[Reply] | None]] = [(order, Future()) for order in orders]
    self._dispatcher.carry_out(waiting)
    return [future.result(0) for _, future in waiting if future is not None]
