"""One end of a pipe to the compiler process, which never waits for longer than it is let."""

from __future__ import annotations

import io
import os
import selectors
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

LOOK_AGAIN = 0.2  # seconds


class Pipe(Connection):
    """Sends to a process that may not read, and receives from one that may stop in the middle of a message.

    A pipe takes 64 KiB that nobody reads; who sends more waits, as who reads half a message does.

    Args:
        handle: a descriptor, whose end this is alone.
        readable: whether it is the end to receive at.

    Attributes:
        is_over: asked every `LOOK_AGAIN` seconds of waiting in the middle of a message; where it is true,
            `TimeoutError` is raised, and the pipe is of no use any more.
    """

    def __init__(self, handle: int, readable: bool) -> None:
        super().__init__(handle, readable=readable, writable=not readable)
        self.is_over: Callable[[], bool] = lambda: False
        os.set_blocking(handle, False)

    # What `Connection` sends and receives messages by: the very loops, which would wait for ever.

    def _send(self, data: Any, write: object = None) -> None:
        left = memoryview(data).cast("B")
        while left:
            try:
                left = left[os.write(self.fileno(), left) :]
            except BlockingIOError:
                self._wait(selectors.EVENT_WRITE)

    def _recv(self, size: int, read: object = None) -> io.BytesIO:
        received = io.BytesIO()
        while (left := size - received.tell()) > 0:
            try:
                part = os.read(self.fileno(), left)
            except BlockingIOError:
                self._wait(selectors.EVENT_READ)
                continue
            if not part:
                raise EOFError
            received.write(part)
        return received

    def _wait(self, event: int) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.fileno(), event)
            while not selector.select(LOOK_AGAIN):
                if self.is_over():
                    raise TimeoutError
