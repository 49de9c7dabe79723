"""Whether a host still runs what it ran at some moment: asked in every training step, so it costs little.

After a training step nothing of the library is in the processor's cache, and each function that is called
has to be fetched. So this is one function, which only looks at attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxgraft.compiling.compiled import CompiledHost
    from fxgraft.host.host import Host
    from fxgraft.slots.structure import Structure


class SameCode:
    """What a host ran at the moment of the last `note`.

    Args:
        host: the host.
    """

    def __init__(self, host: Host):
        self._running, self._links = host._running, host._links
        self._structure: Structure | None = None
        self._compiled: CompiledHost | None = None
        self._changes = 0

    def note(self) -> None:
        """It is what it runs now."""
        self._structure, self._compiled = self._running.structure, self._running.compiled
        self._changes = 0 if self._compiled is None else self._compiled.code.changes

    def forget(self) -> None:
        """`holds` returns False until the next `note`."""
        self._structure = None

    def holds(self) -> bool:
        """Whether it runs that, in no context that lets it run otherwise for a while.

        Compiled code counts as other code as soon as something has to be compiled for it.
        """
        running = self._running
        if running.structure is not self._structure or self._links.borrowed is not None:
            return False
        compiled = running.compiled
        if compiled is not self._compiled:
            return False
        return compiled is None or compiled.code.changes == self._changes
