"""What goes on between the choice of a change and its landing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxgraft.host.host import Host
from fxgraft.host.now import form_now
from fxgraft.lifecycle.change import Change
from fxgraft.slots.structure import Structure

if TYPE_CHECKING:
    from fxgraft.compiling.compiled import CompiledHost
    from fxgraft.compiling.job import Job


NOTHING = Change()
"""An empty change."""


@dataclass
class Attempt:
    """What one step has come to, should it raise: whether it chooses a change, or which it has begun with."""

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
        return host.structure is self.base and (self.form is None or form_now(host) == self.form)

    @property
    def is_late(self) -> bool:
        """Whether the time-out has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline
