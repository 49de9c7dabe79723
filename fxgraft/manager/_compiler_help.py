"""Whether the compiler process helps with a change, and what is said where it cannot."""

from __future__ import annotations

from fxgraft.compiling import helper
from fxgraft.telemetry.events import logger


class CompilerHelp:
    """The compiler process, as a manager may use it.

    Args:
        setting: ``"auto"``: compile in another process where that can be; ``"off"``: never.
    """

    def __init__(self, setting: str):
        self.is_off = setting == "off"
        self._said: set[str] = set()

    def is_there(self) -> bool:
        """Whether a job can be given to it, as far as one can know; the log says once why not."""
        if self.is_off:
            return False
        reason = helper.unavailable()
        if reason is not None:
            self.say_why_not(reason)
        return reason is None

    def say_why_not(self, reason: str) -> None:
        """There is no compiler process: say so, once for each reason."""
        self.say_once(
            f"no compiler process compiles in the background ({reason}): changes compile as they land"
        )

    def say_once(self, text: str) -> None:
        """Warn, unless the very same was said before."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)
