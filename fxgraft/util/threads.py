"""Threads that the end of the program waits for, but not for ever.

A daemon thread that is inside of torch when the interpreter goes is torn out of it, and the process aborts
("terminate called without an active exception"). A thread that is no daemon keeps the process for as long as
it likes: a blueprint that hangs would keep it for ever.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable

PATIENCE = 3.0
"""Seconds that the end of the program waits, in all."""

_running: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def start(run: Callable[[], object], name: str | None = None) -> threading.Thread:
    """Start a thread that runs ``run``. Raises `RuntimeError` where the system has no more of them."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    _running.add(thread)
    return thread


@atexit.register
def _wait() -> None:
    deadline = time.monotonic() + PATIENCE
    for thread in list(_running):
        thread.join(max(deadline - time.monotonic(), 0.0))
