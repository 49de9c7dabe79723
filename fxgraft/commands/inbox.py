"""Commands of other threads, which wait here until the training thread is between two steps.

    controller's thread  ── submit ──>  inbox  ── take, in order, each once ──>  dispatcher
                                          ^
    training thread  ── step() ───────────┘

Whatever changes a host happens on the thread that trains it: a swap in the middle of a forward pass of
another thread would tear that pass apart.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

from fxgraft.commands import Command, Reply
from fxgraft.errors import StageError

MAX_WAITING = 4096
"""How many commands may wait; what comes beyond is refused, so that a flood cannot fill the memory."""


class Inbox:
    """A queue with one reader, the training thread: the one that last took a step.

    Before the first step that is the thread which made the inbox; when it has ended, any thread.
    """

    def __init__(self) -> None:
        self._trainer = threading.current_thread()
        self._stepped = False
        self._stepping = threading.Lock()
        self._waiting: deque[tuple[Command, Future[Reply]]] = deque()  # whose ends are safe to use in threads

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_here(self) -> bool:
        """Whether this is the training thread."""
        return self._trainer is threading.current_thread() or not self._trainer.is_alive()

    def require_here(self, action: str) -> None:
        """Raise `StageError` if another thread trains. (Before the first step none does.)"""
        if self._stepped and not self.is_here:
            here = threading.current_thread().name
            raise StageError(
                f"cannot {action} in thread {here!r}: the host is trained in thread {self._trainer.name!r}, "
                f"which may be inside a step; send a command by manager.handle() or manager.submit(), "
                f"which that thread carries out at its next manager.step()"
            )

    def has_work_for(self, thread: int) -> bool:
        """Whether commands wait, or the thread of that number is not the one that last took a step."""
        return bool(self._waiting) or thread != self._trainer.ident

    def begin_step(self) -> None:
        """The calling thread takes a step, and is the training thread from now on; `end_step` must follow.

        Raises:
            StageError: another thread is inside of one.
        """
        if not self._stepping.acquire(blocking=False):
            raise StageError(
                f"thread {self._trainer.name!r} is inside manager.step(): one thread trains a host. "
                f"Call step() in that thread only; send commands from others"
            )
        self._trainer, self._stepped = threading.current_thread(), True

    def end_step(self) -> None:
        """The step is over."""
        self._stepping.release()

    def put(self, command: Command) -> Future[Reply]:
        """Queue ``command``. The future gets its reply, and can be cancelled before that."""
        future: Future[Reply] = Future()
        if len(self._waiting) >= MAX_WAITING:
            reason = f"{MAX_WAITING} commands wait already: does the training thread call manager.step()?"
            future.set_result(Reply(False, reason, type(command).__name__, id=command.id))
        else:
            self._waiting.append((command, future))
        return future

    def take(self) -> Iterator[tuple[Command, Future[Reply]]]:
        """What waits now, in the order in which it came. What was taken can be cancelled no longer."""
        for _ in range(len(self._waiting)):
            command, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                yield command, future
