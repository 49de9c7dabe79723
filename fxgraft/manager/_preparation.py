"""A change between its choice and its application, and the application: whole or not at all."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxgraft.host.current_form import current_form
from fxgraft.host.host import Host
from fxgraft.lifecycle.change import Change
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager._waiting import Waiting
from fxgraft.slots.structure import Structure

if TYPE_CHECKING:
    from fxgraft.compiling.compiled import CompiledHost
    from fxgraft.compiling.job import Job


NOTHING = Change()
"""An empty change."""


@dataclass
class Attempt:
    """How far one step came, for the case that it raises: whether it chose a change, and which it began."""

    is_choosing: bool = False
    change: Change = NOTHING


@dataclass
class Preparation:
    """A job of the compiler process.

    Attributes:
        job: compiles.
        change: what it is for; an empty one where it is for what runs already.
        base: the structure that it began from.
        target: the structure that the change leads to, before layers grow in it.
        deadline: on the monotonic clock, or None.
        wider: the compiled form that the host will have in other sizes; None where it keeps its own.
        grown: the structure then, without the fossils that became part of layers; None where none did.
        form: of the host when it began, where layers grow.
    """

    job: Job
    change: Change
    base: Structure
    target: Structure
    deadline: float | None
    wider: CompiledHost | None = None
    grown: Structure | None = None
    form: object = None

    def is_of(self, host: Host) -> bool:
        """Whether the host is what the job began from."""
        return host.structure is self.base and (self.form is None or current_form(host) == self.form)

    @property
    def is_late(self) -> bool:
        """Whether the time-out has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline


class Applier:
    """Carries changes out.

    Args:
        lifecycle: does so.
        waiting: what was asked for; is notified of what was applied, and what has failed.

    Attributes:
        is_under_way: whether a change is applied now.
    """

    def __init__(self, lifecycle: Lifecycle, waiting: Waiting):
        self._lifecycle, self._waiting = lifecycle, waiting
        self.is_under_way = False

    def apply(self, change: Change, compiled: bool) -> None:
        """Apply ``change``.

        Args:
            change: to be carried out. Where it cannot be, it is given up, and the log says why.
            compiled: whether there is code for it; otherwise it compiles now.
        """
        self.is_under_way = True
        try:
            self._lifecycle.commit(change, warm_up=not compiled)
        except Exception as error:  # of a compiler, of memory: no reason to end the training
            reason = f"{type(error).__name__}: {error}"
            if change.is_act or len(change.parts) == 1:
                self._waiting.fail_change(change, reason)
                return
            for part in change.parts:  # one of several is at fault: the others are applied without it
                self.apply(part, compiled=False)
            return
        finally:
            self.is_under_way = False
        self._waiting.applied(change)
