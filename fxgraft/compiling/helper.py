"""The compiler process as the trainer sees it: started, not forked; one for all hosts; warm for later jobs.

It has memory, threads and an interpreter of its own (`fxgraft.compiling.worker`), so it works beside threads,
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
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import IO, Any

from fxgraft.util import threads

START_WITHIN = 180.0
"""Seconds in which it has to be ready: importing torch takes 2.5 on an idle machine."""

PATIENCE = 5.0
"""Seconds that it has to leave a job that is stopped: starting another process takes about as long."""

MAX_FAILED_STARTS = 3
"""After so many in a row that failed, no other start is tried in this process."""

_LOOK_AFTER_STOP = 0.2  # seconds
_TO_END = 0.5  # seconds, for one that has closed its end of the pipe

_OF_TORCHRUN = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""Variables that make a process one of several ranks, which the compiler process is not."""

_CODE = (
    "import sys; sys.path[:] = {path!r}; from fxgraft.compiling.worker import main; "
    "main({read}, {write}, {pid})"
)

_serial = itertools.count()

# Held while code is loaded in the thread here, and by a fork (of a DataLoader, say): a child that is forked
# in the middle has the dynamic linker's lists as they were at that moment, and can load no code of its own.
_loading = threading.RLock()


class HelperRun:
    """One job at the compiler process.

    Args:
        data: a parcel (`fxgraft.compiling.parcel`) with an `Order`.
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
        self._child: _Child | None = None
        self.is_ready = False
        self._is_ending = False
        self._failed_starts = 0
        self._why_not = ""
        threads.start(self._serve, "fxgraft-compiler")

    def submit(self, run: HelperRun) -> None:
        """Carry it out after those that came before."""
        self._jobs.put(run)

    def warm(self) -> None:
        """Start it, so that it is ready when it is needed."""
        if self._child is None:
            self._jobs.put(None)

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
        while True:  # nobody waits for ever for what will not come
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
            child = _Child()
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

    def _drop(self, child: _Child) -> str:
        """End a process for good; return how it ended."""
        with self._lock:
            self._child = None
            self.is_ready = False
        return child.bury()


class _Child:
    """One process."""

    def __init__(self) -> None:
        self._printed: IO[bytes] | None = None
        with suppress(OSError):  # what it prints is for the message about its end: it can do without
            self._printed = tempfile.TemporaryFile(mode="a+b")  # noqa: SIM115 - it lives as long as this
        ours, theirs = os.pipe(), os.pipe()  # from there, and to there; not inherited by anything else
        try:
            self._process = _popen(theirs[0], ours[1], self._printed)
        except BaseException:
            for end in (*ours, *theirs):
                os.close(end)
            if self._printed is not None:
                self._printed.close()
            raise
        os.close(theirs[0])
        os.close(ours[1])
        self.pid = self._process.pid
        self._from = Connection(ours[0], writable=False)
        self._to = Connection(theirs[1], readable=False)

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.returncode is None and not self._has_ended()

    def wait_until_ready(self) -> str | None:
        """Wait for its first message; return why that did not come."""
        try:
            if not self._from.poll(START_WITHIN):
                return f"not ready after {START_WITHIN:g} s"
            if self._from.recv() == ("ready",):
                return None
            return "its first message is another one"
        except Exception as error:
            how = self._ended()
            return how if isinstance(error, EOFError) else f"{type(error).__name__}: {error}; it {how}"

    def carry_out(self, run: HelperRun) -> str | None:
        """Have ``run`` done; return why it was given up. Raises `EOFError` where the process has ended."""
        try:
            self._to.send(("do", run.number, run.data))
            deadline: float | None = None
            while True:
                if self._from.poll(_LOOK_AFTER_STOP):
                    if self._take(run, *self._from.recv()):
                        return None
                elif run.is_stopped and deadline is None:
                    deadline = time.monotonic() + PATIENCE
                    self._to.send(("leave", run.number))
                elif deadline is not None and time.monotonic() > deadline:
                    return "stopped"
        except OSError as error:
            raise EOFError from error

    def _take(self, run: HelperRun, what: str, number: int, *rest: Any) -> bool:
        """Take one message in; return whether it is the last one."""
        if number != run.number:
            raise ValueError(f"an answer to another job: {number}")
        if what == "made":
            run.take((*rest, None))
        elif what == "failed":
            run.take((rest[0], None, rest[1]))
        elif what == "unread":
            run.take((None, None, rest[0]))
        elif what != "over":
            raise ValueError(f"an unknown message: {what!r}")
        return what == "over"

    def kill(self) -> None:
        """End it, with everything that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            if self._process.returncode is None:  # its number is still its own
                os.killpg(self.pid, signal.SIGKILL)

    def bury(self) -> str:
        """End it and forget it; return how it ended."""
        how = self._ended()
        self.close()
        return how

    def close(self) -> None:
        """Close our ends."""
        for pipe in (self._from, self._to):
            with suppress(OSError):
                pipe.close()
        if self._printed is not None:
            self._printed.close()
        if self._process.returncode is None:
            self._process.returncode = 0  # not ours to wait for

    def _has_ended(self) -> bool:
        # Without reaping it: its number stays its own, and so does that of its group.
        with suppress(ChildProcessError):
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return True

    def _ended(self) -> str:
        deadline = time.monotonic() + _TO_END
        while not self._has_ended() and time.monotonic() < deadline:  # it may be about to: let it say how
            time.sleep(0.01)
        self.kill()
        code = self._process.wait()
        said = self._last_line()
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}{said}"
        return f"ended with exit status {code}{said}"

    def _last_line(self) -> str:
        if self._printed is None:
            return ""
        try:
            size = self._printed.seek(0, os.SEEK_END)
            self._printed.seek(max(0, size - 4096))
            lines = self._printed.read().decode("utf-8", "replace").strip().splitlines()
        except (OSError, ValueError):
            return ""
        return f" ({lines[-1].strip()[:300]})" if lines else ""


def _popen(read: int, write: int, printed: IO[bytes] | None) -> subprocess.Popen[bytes]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_TORCHRUN and not name.startswith("TORCHELASTIC_") and name != "PYTHONWARNINGS"
    }
    code = _CODE.format(path=list(sys.path), read=read, write=write, pid=os.getpid())
    program = spawn.get_executable() or sys.executable
    program = os.fsdecode(program)
    optimized = [f"-{'O' * sys.flags.optimize}"] if sys.flags.optimize else []
    return subprocess.Popen(
        [program, *optimized, "-P", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=printed or subprocess.DEVNULL,
        stderr=printed or subprocess.DEVNULL,
        pass_fds=(read, write),
        env=environment,
        process_group=0,
    )


def unavailable() -> str | None:
    """Why no compiler process can be started; None if one can, as far as one can know."""
    if os.name != "posix":
        return f"it needs POSIX pipes; this is {sys.platform}"
    if not (spawn.get_executable() or sys.executable):
        return "sys.executable is empty: there is no interpreter to start"
    return None


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
