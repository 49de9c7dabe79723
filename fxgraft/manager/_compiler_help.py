"""The compiler process, as a manager uses it: whether it can compile for a change, and its promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxgraft.compiling import helper
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.telemetry.events import logger

if TYPE_CHECKING:
    from fxgraft.compiling.compiled import CompiledHost
    from fxgraft.compiling.job import CompileTask
    from fxgraft.compiling.promises import Promises


MAX_SAID = 100
"""How many texts are remembered, not to be said again."""


class CompilerHelp:
    """The compiler process, as a manager may use it.

    Args:
        setting: ``"auto"``: compile in another process where that can be; ``"off"``: never.
    """

    def __init__(self, setting: str):
        self.is_off = setting == "off"
        self._said: dict[str, None] = {}

    def is_there(self) -> bool:
        """Whether a job can be given to it, as far as one can know; the log says once why not."""
        if self.is_off:
            return False
        reason = helper.unavailable()
        if reason is not None:
            self.warn_of_reason(reason)
        return reason is None

    def warn_of_reason(self, reason: str) -> None:
        """There is no compiler process: say so, once for each reason."""
        self.say_once(
            f"no compiler process compiles in the background ({reason}): changes compile when they go live"
        )

    def say_once(self, text: str) -> None:
        """Warn, unless the very same was said before."""
        if text in self._said:
            return
        if len(self._said) >= MAX_SAID:  # each reason is another one: with a number in it, say
            del self._said[next(iter(self._said))]
        self._said[text] = None
        logger.warning("%s", text)


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

    def keep_ready(self, compiled: CompiledHost) -> None:
        """Start the compiler process, so that it is ready when it is needed."""
        compiled.promise = self._make
        helper.warm()

    def _make(self, tasks: Sequence[CompileTask]) -> bool:
        """Give the compiler process what the running structure needs later; False where it cannot."""
        from fxgraft.compiling.promises import Promises  # which is there: the host is compiled

        if self._promises is None:
            self._promises = Promises(self._timeout)
        if not helper.is_free() or self._promises.is_hopeless:
            return False
        host = self._host
        try:
            job = engine.compile_in_helper(host, host.structure, host.grafts(), tasks)
        except Exception as error:  # it cannot be sent: all is compiled here
            self._promises.fail(f"{type(error).__name__}: {error}")
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
