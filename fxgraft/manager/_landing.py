"""How a change that was prepared lands: on the training thread, at a step boundary, whole or not at all."""

from __future__ import annotations

from fxgraft.lifecycle.change import Change
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager._waiting import Waiting


class Landing:
    """Carries changes out.

    Args:
        lifecycle: does so.
        waiting: what was asked for; hears what has landed, and what comes to nothing.

    Attributes:
        is_under_way: whether a change lands now.
    """

    def __init__(self, lifecycle: Lifecycle, waiting: Waiting):
        self._lifecycle, self._waiting = lifecycle, waiting
        self.is_under_way = False

    def land(self, change: Change, compiled: bool) -> None:
        """Let ``change`` land.

        Args:
            change: to be carried out. Where it cannot be, it is given up, and the log says why.
            compiled: whether there is code for it; otherwise it compiles now.
        """
        self.is_under_way = True
        try:
            self._lifecycle.commit(change, warm_up=not compiled)
        except Exception as error:  # of a compiler, of memory: no reason to end the training
            reason = f"{type(error).__name__}: {error}"
            if change.whole or len(change.parts) == 1:
                self._waiting.fail_change(change, reason)
                return
            for part in change.parts:  # one of several is at fault: the others land without it
                self.land(part, compiled=False)
            return
        finally:
            self.is_under_way = False
        self._waiting.landed(change)
