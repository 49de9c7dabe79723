"""The compiler process as the operating system sees it: an interpreter that is started, with two pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import spawn
from typing import IO, TYPE_CHECKING, Any

from fxgraft.compiling import _pipe
from fxgraft.compiling._pipe import Pipe

if TYPE_CHECKING:
    from fxgraft.compiling.helper import HelperRun

START_WITHIN = 180.0
"""Seconds in which it has to be ready: importing torch takes 2.5 on an idle machine."""

PATIENCE = 5.0
"""Seconds that it has to leave a job that is stopped: starting another process takes about as long."""

_TO_END = 0.5  # seconds, for one that has closed its end of the pipe

_OF_TORCHRUN = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""Variables that make a process one of several ranks, which the compiler process is not."""

_CODE = (
    "import sys; sys.path[:] = {path!r}; from fxgraft.compiling._worker import main; "
    "main({read}, {write}, {pid})"
)


class ChildProcess:
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
        self._from = Pipe(ours[0], readable=True)
        self._to = Pipe(theirs[1], readable=False)

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.returncode is None and not self._has_ended()

    def wait_until_ready(self) -> str | None:
        """Wait for its first message; return why that did not come."""
        deadline = time.monotonic() + START_WITHIN
        self._from.is_over = lambda: time.monotonic() > deadline
        try:
            if not self._from.poll(START_WITHIN):
                return f"not ready after {START_WITHIN:g} s"
            if self._from.recv() == ("ready",):
                return None
            return "its first message is another one"
        except TimeoutError:
            return f"not ready after {START_WITHIN:g} s"
        except Exception as error:
            how = self._ended()
            return how if isinstance(error, EOFError) else f"{type(error).__name__}: {error}; it {how}"

    def carry_out(self, run: HelperRun) -> str | None:
        """Carry out ``run``; return why it was given up. Raises `EOFError` where the process has ended."""
        deadline: float | None = None

        def is_over() -> bool:
            """Whether it has had the time that it has to leave a job that is stopped."""
            nonlocal deadline
            if run.is_stopped and deadline is None:
                deadline = time.monotonic() + PATIENCE
            return deadline is not None and time.monotonic() > deadline

        self._from.is_over = self._to.is_over = is_over
        is_asked = False
        try:
            self._to.send(("do", run.number, run.data))
            while True:
                if self._from.poll(_pipe.LOOK_AGAIN):
                    if self._take(run, *self._from.recv()):
                        return None
                elif is_over():
                    return "stopped"
                elif deadline is not None and not is_asked:
                    is_asked = True
                    self._to.send(("leave", run.number))
        except TimeoutError:
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

    def close_and_describe(self) -> str:
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


def search_path() -> list[str]:
    """Where this process finds modules: Python passes over entries of ``sys.path`` that are no strings."""
    return [str(entry) for entry in sys.path if isinstance(entry, str)]


def _popen(read: int, write: int, printed: IO[bytes] | None) -> subprocess.Popen[bytes]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_TORCHRUN and not name.startswith("TORCHELASTIC_") and name != "PYTHONWARNINGS"
    }
    code = _CODE.format(path=search_path(), read=read, write=write, pid=os.getpid())
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
