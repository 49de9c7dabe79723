"""What a change that was waited for left to the compiler process: see `fxgraft.compiling.promises`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxgraft.compiling import helper
from fxgraft.host import engine
from fxgraft.host.host import Host

if TYPE_CHECKING:
    from fxgraft.compiling.compiled import CompiledHost
    from fxgraft.compiling.job import CompileTask
    from fxgraft.compiling.promises import Promises


class Promised:
    """The promises of one host.

    Args:
        host: the host.
        timeout: in seconds, after which a call compiles what was promised to it; None: never.
    """

    def __init__(self, host: Host, timeout: float | None):
        self._host = host
        self._timeout = timeout
        self._promises: Promises | None = None

    def __len__(self) -> int:
        return 0 if self._promises is None else len(self._promises)

    def stand_by(self, compiled: CompiledHost) -> None:
        """Have the compiler process ready for when it is needed."""
        compiled.promise = self._make
        helper.warm()

    def _make(self, tasks: Sequence[CompileTask]) -> bool:
        """Let the compiler process make what the running structure needs later; False where it cannot."""
        from fxgraft.compiling.promises import Promises  # which is there: the host is compiled

        if self._promises is None:
            self._promises = Promises(self._timeout)
        if not helper.stands_by() or self._promises.failure is not None:
            return False
        host = self._host
        try:
            job = engine.compile_in_helper(host, host.structure, host.grafts(), tasks)
        except Exception as error:  # it cannot travel: all is compiled here
            self._promises.failure = f"{type(error).__name__}: {error}"
            return False
        self._promises.make(job, tasks)
        return True

    def take(self) -> None:
        """Take in what has come, by one part; leave what the host needs no more."""
        if self._promises:
            compiled, structure = self._host.compiled, self._host.structure
            self._promises.take(lambda task: compiled is not None and compiled.serves(task, structure))

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the compiler process has sent all."""
        if self._promises is not None:
            self._promises.wait(timeout)
