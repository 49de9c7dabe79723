"""A process that compiles while the trainer goes on.

It is forked, so it knows all that the trainer knows, classes of notebooks and scripts included, and
nothing has to be copied or imported: what it changes in the host, it changes in its own memory. It
runs at a lower priority, is in a process group of its own with the compilers that it starts, and ends when
the trainer does.
"""

from __future__ import annotations

import atexit
import gc
import os
import queue
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from fxgraft import threads
from fxgraft.compiling import linking

Send = Callable[[Any], None]
Work = Callable[[Send], None]

_NICENESS = 5
"""Where a core is free no niceness shows in the trainer's steps. Where training keeps every core busy this is
a quarter of one for the helper; at 19 it got nothing (a germination of 10 s was not live after 200)."""

_LOOK_AFTER_PARENT = 0.5  # seconds


class Helper:
    """One run of the helper.

    Args:
        work: what to do there; is given a function that sends a message to the trainer.
        decode: what to make of each message here, off the training thread.
    """

    def __init__(self, work: Work, decode: Callable[[Any], Any] = lambda message: message):
        context = get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_main, args=(work, sender, os.getpid()), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads: the child runs none of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        sender.close()
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Read in a thread: a message that arrives slowly, or never whole, must not hold up a step.
        read = partial(copy_context().run, _read, receiver, decode, self._messages)
        self._reader = threads.start(read)
        self._stop = weakref.finalize(self, _kill, self._process)
        _helpers.add(self)

    def receive(self) -> Any:
        """The next message that has arrived; None if there is none."""
        try:
            return self._messages.get_nowait()
        except queue.Empty:
            return None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and every message of it was received."""
        return not self._reader.is_alive() and self._messages.empty()

    @property
    def failure(self) -> str | None:
        """How it ended, where that was not as it should; None otherwise, and while it runs."""
        if not self.is_over:
            return None
        self._process.join(_LOOK_AFTER_PARENT)  # it has closed its end: it is gone, or about to be
        code = self._process.exitcode
        if code == 0:
            return None
        if code is not None and code < 0:
            return f"the helper process was killed by {signal.Signals(-code).name}"
        return f"the helper process ended with exit status {code}"

    def join(self, timeout: float | None = None) -> None:
        """Wait until every message has arrived."""
        self._reader.join(timeout)

    def stop(self) -> None:
        """Kill it, with everything that it started."""
        self._stop()


_helpers: weakref.WeakSet[Helper] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Before the threads that read from them are waited for (what was registered last comes first)."""
    for helper in list(_helpers):
        helper.stop()


def unavailable(devices: Iterable[torch.device]) -> str | None:
    """Why no helper can be forked for a host on ``devices``; None if one can."""
    if sys.platform != "linux":
        return f"it is forked, which is safe on Linux only; this is {sys.platform}"
    others = sorted({device.type for device in devices if device.type != "cpu"})
    if others or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return f"a forked process cannot use {', '.join(others) or 'cuda'}"
    return None


def _main(work: Work, sender: Connection, parent: int) -> None:
    threads = torch.get_num_threads()
    gc.freeze()  # what is garbage already is the trainer's to finalize: its files, its folders
    os.setpgid(0, 0)
    os.nice(_NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for the trainer, who stops us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            torch.set_num_threads(threads)  # the code is made for as many threads as the trainer has
            work(sender.send)
        except BaseException as error:
            failures.append(error)

    # In a thread of its own: OpenMP's workers were not forked, and the thread that had them would wait for
    # them for ever; a new one gets new ones. With the trainer's context, which holds torch's configs.
    worker = threading.Thread(target=copy_context().run, args=(run,))
    worker.start()
    worker.join()
    sender.close()
    if failures:
        raise failures[0]


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_AFTER_PARENT)
    os.killpg(0, signal.SIGKILL)


def _read(receiver: Connection, decode: Callable[[Any], Any], messages: queue.SimpleQueue[Any]) -> None:
    with receiver:
        while True:
            try:
                message = receiver.recv()
            except (EOFError, OSError):
                return
            with linking.quiet:
                messages.put(decode(message))


def _kill(process: Any) -> None:
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has no group of its own yet
            process.kill()
    process.join()
