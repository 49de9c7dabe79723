"""Commands to a manager, from any thread; `dispatch` carries them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from fxgraft.commands import Command, Reply
from fxgraft.manager._core import ManagerCore
from fxgraft.util.interrupts import uninterruptible

_FOR_RANK_0 = "commands are given to rank 0, which tells the others"


@uninterruptible
def handle(self: ManagerCore, command: Command | Mapping[str, Any] | str | bytes) -> Reply:
    """Carry out one command, as an object, a dictionary or JSON. Never raises: the reply says.

    A command from another thread than the training thread is queued: it is carried out at the end of the next
    `step`, and the reply is ``queued``; `submit` returns the final reply. With several ranks every command is
    queued on rank 0 and carried out on all ranks; other ranks refuse.

    Args:
        command: one of `fxgraft.commands`; or the same as a dictionary, or as JSON (text, or bytes in UTF-8).
    """
    if self.peers.rank:
        return Reply(False, _FOR_RANK_0)
    is_now = self._inbox.is_here and self.peers.size == 1
    return self._dispatcher.handle(command, None if is_now else self._inbox)


@uninterruptible
def carry_out(self: ManagerCore, command: Command) -> Reply:
    """As `handle`, but at once and on this rank: for a decision that every rank makes in the same way.

    Args:
        command: one of `fxgraft.commands`.

    Raises:
        StageError: in another thread than the one that trains.
    """
    self._inbox.require_here("carry out a command")
    return self._dispatcher.handle(command)


def submit(self: ManagerCore, command: Command | Mapping[str, Any] | str | bytes) -> Future[Reply]:
    """Queue a command for the end of the next `step`; from any thread.

    Commands are carried out in the order in which they came, each once.

    Args:
        command: as of `handle`.

    Returns:
        A future of the reply. ``future.cancel()`` withdraws a command that is still queued. Give
        ``future.result(timeout)`` a timeout: after the end of the training nothing is carried out.
    """
    if self.peers.rank:
        refused: Future[Reply] = Future()
        refused.set_result(Reply(False, _FOR_RANK_0))
        return refused
    return self._dispatcher.submit(command, self._inbox)


def carry_out_together(self: ManagerCore, orders: Sequence[Command]) -> list[Reply]:
    """As `carry_out`, for several commands in one change; if that fails, one by one.

    Args:
        orders: the commands, in the order in which they are carried out.

    Returns:
        A reply to each, in the same order.

    Raises:
        StageError: in another thread than the one that trains.
    """
    self._inbox.require_here("carry out commands")
    waiting: list[tuple[Command, Future[Reply] | None]] = [(order, Future()) for order in orders]
    self._dispatcher.carry_out(waiting)
    return [future.result(0) for _, future in waiting if future is not None]
