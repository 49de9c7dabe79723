"""The compiler process as the trainer sees it: started, not forked; one for all hosts; warm for later jobs.

It has memory, threads and an interpreter of its own (`_worker`), so it works beside threads,
GPUs, DataLoader workers, in daemonic processes and notebooks. A thread here starts it, gives it one job after
the other, and takes in what it sends: no step waits for any of that. It is in a process group of its own with
the compilers that it starts. Where it does not leave a job that is stopped, it is ended with them, and
another one is started at once.
"""

from __future__ import annotations

import atexit
import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextvars import copy_context
from multiprocessing import spawn
from typing import Any

from fxgraft.compiling._child import ChildProcess
from fxgraft.util import threads

MAX_FAILED_STARTS = 3
"""After so many in a row that failed, no other start is tried in this process."""

_serial = itertools.count()

# Held while code is loaded in the thread here, and by a fork (of a DataLoader, say): a child that is forked
# in the middle has the dynamic linker's lists as they were at that moment, and can load no code of its own.
_loading = threading.RLock()


class HelperRun:
    """One job at the compiler process.

    Args:
        data: a payload (`fxgraft.compiling._payload`) with an `Order`.
        decode: what to make of each ``(index, bytes, None)`` or ``(index, None, reason)``, off the training
            thread.

    Attributes:
        failure: how it ended, where that was not as it should; None otherwise, and while it goes on.
        unavailable: why there is no compiler process to do it; None if there is one.
    """

    def __init__(self, data: bytes, decode: Callable[[Any], Any]):
        self.data = data
        self.number = next(_serial)
        self.failure: str | None = None
        self.unavailable: str | None = None
        self.is_stopped = False
        self._context = copy_context()  # has the configuration of torch of the thread that trains
        self._decode = decode
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._over = threading.Event()
        self._process = _get()
        self._process.submit(self)

    def receive(self) -> Any:
        """The next message that has arrived; None if there is none."""
        try:
            return self._messages.get_nowait()
        except queue.Empty:
            return None

    @property
    def has_messages(self) -> bool:
        """Whether something has arrived that was not received."""
        return not self._messages.empty()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and every message of it was received."""
        return self._over.is_set() and self._messages.empty()

    def join(self, timeout: float | None = None) -> None:
        """Wait until every message has arrived."""
        self._over.wait(timeout)

    def stop(self) -> None:
        """End it. Does not wait."""
        self.is_stopped = True

    # In the thread that serves it

    def take(self, message: Any) -> None:
        """Decode a message, and let it be received."""
        if self.is_stopped:
            return
        with _loading:
            self._messages.put(self._context.run(self._decode, message))

    def end(self, failure: str | None = None, unavailable: str | None = None) -> None:
        """Nothing more will come."""
        self.failure, self.unavailable = failure, unavailable
        self.data = b""
        self._over.set()


class CompilerProcess:
    """The process, its pipes, and the thread that serves it.

    Attributes:
        is_ready: whether it has started, and waits for a job or is at one.
        now: the job that it is at.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[HelperRun | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.now: HelperRun | None = None
        self._child: ChildProcess | None = None
        self.is_ready = False
        self._is_ending = False
        self._failed_starts = 0
        self._why_not = ""
        self._thread: threading.Thread | None = None

    def submit(self, run: HelperRun) -> None:
        """Carry it out after those that came before."""
        if (reason := self._start_thread()) is not None:
            run.end(unavailable=reason)
        else:
            self._jobs.put(run)

    def warm(self) -> None:
        """Start it, so that it is ready when it is needed."""
        if self._child is None and self._start_thread() is None:
            self._jobs.put(None)

    def _start_thread(self) -> str | None:
        """See to it that there is the thread; return why there is none."""
        with self._lock:
            if self._thread is None:
                try:
                    self._thread = threads.start(self._serve, "fxgraft-compiler")
                except RuntimeError as error:
                    return f"the thread that serves it cannot be started: {error}"
        return None

    @property
    def pid(self) -> int | None:
        """Of the process that is there now."""
        return self._child.pid if self._child is not None else None

    def end(self) -> None:
        """End the process and the thread."""
        with self._lock:
            self._is_ending = True
            if self._child is not None:
                self._child.kill()
        self._jobs.put(None)

    def abandon(self) -> None:
        """In a forked child: the process is the parent's. Without these ends open it can see that end."""
        if self._child is not None:
            self._child.close()

    def _serve(self) -> None:
        while not self._is_ending:
            run = self._jobs.get()
            if self._is_ending or (run is not None and run.is_stopped):
                if run is not None:
                    run.end("stopped")
                continue
            unavailable = self._start()
            if run is None:
                continue
            if unavailable is not None:
                run.end(unavailable=unavailable)
                continue
            self._carry_out(run)
            if self._child is None and not self._is_ending:
                self._start()  # warm for the next
        if self._child is not None:
            self._drop(self._child)
        while True:  # no one may wait for ever for what will not come
            try:
                left = self._jobs.get_nowait()
            except queue.Empty:
                return
            if left is not None:
                left.end("the program ends")

    def _start(self) -> str | None:
        """See to it that there is a process; return why there is none."""
        child = self._child
        if child is not None:
            if child.is_alive:
                return None
            self._drop(child)
        if self._failed_starts >= MAX_FAILED_STARTS:
            return self._why_not
        try:
            child = ChildProcess()
        except Exception as error:  # no process, no memory, no file for what it prints
            self._failed_starts += 1
            self._why_not = f"it cannot be started: {type(error).__name__}: {error}"
            return self._why_not
        with self._lock:
            self._child = child
            if self._is_ending:
                child.kill()
        reason = child.wait_until_ready()
        if reason is not None:
            self._drop(child)
            self._failed_starts += 1
            self._why_not = f"it does not start: {reason}"
            return self._why_not
        self._failed_starts = 0
        self.is_ready = True
        return None

    def _carry_out(self, run: HelperRun) -> None:
        child = self._child
        assert child is not None
        if run.is_stopped:
            run.end("stopped")
            return
        self.now = run
        failure: str | None
        try:
            failure = child.carry_out(run)
        except EOFError:
            failure = ""
        except Exception as error:  # what came is no message
            failure = f"the compiler process sent what cannot be read ({type(error).__name__}: {error})"
        self.now = None
        if failure is not None:
            how = self._drop(child)
            failure = failure or f"the compiler process {how}"
        run.end(failure)

    def _drop(self, child: ChildProcess) -> str:
        """End a process for good; return how it ended."""
        with self._lock:
            self._child = None
            self.is_ready = False
        return child.close_and_describe()


def unavailable() -> str | None:
    """Why no compiler process can be started; None if one can, as far as one can know."""
    if os.name != "posix":
        return f"it needs POSIX pipes; this is {sys.platform}"
    if not (spawn.get_executable() or sys.executable):
        return "sys.executable is empty: there is no interpreter to start"
    return None


def is_free() -> bool:
    """Whether the compiler process has started, and is at no job: a job that is given to it begins now."""
    return _process is not None and _process.is_ready and _process.now is None


def warm() -> None:
    """Start the compiler process, so that it is ready when it is needed. Does not wait, and never raises."""
    if unavailable() is None:
        _get().warm()


_process: CompilerProcess | None = None


def _get() -> CompilerProcess:
    global _process
    if _process is None:
        _process = CompilerProcess()
    return _process


@atexit.register
def _end() -> None:
    """Before the threads are waited for (what was registered last comes first)."""
    if _process is not None:
        _process.end()


def _after_fork() -> None:
    global _process
    _loading.release()
    if _process is not None:
        _process.abandon()
    _process = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_after_fork)
