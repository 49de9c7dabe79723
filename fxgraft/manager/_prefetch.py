"""Build a seed's module off the training thread: blueprints may take long to build or to load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from fxgraft.seeds.seed import Seed
from fxgraft.util import threads
from fxgraft_passes import Slot

GATHERS = 1.0
"""Seconds for which a module in the making is waited for by others that are built: one structure is compiled
for all that was asked for at one time, in the place of one for the first and another one for the rest."""


@dataclass(eq=False)
class Pending:
    """A germination in preparation.

    Attributes:
        seed: in GERMINATED.
        slot: where it goes.
        deadline: on the monotonic clock, or None.
        started: likewise.
        module: the result, once it is there.
        error: why there is no module.
        is_agreed: whether it is built on all ranks.
    """

    seed: Seed
    slot: Slot
    deadline: float | None
    started: float = field(default_factory=time.monotonic)
    module: nn.Module | None = None
    error: BaseException | None = None
    is_agreed: bool = False
    _done: threading.Event = field(default_factory=threading.Event)

    @property
    def is_built(self) -> bool:
        """Whether the module is there, or has failed."""
        return self._done.is_set()

    @property
    def is_late(self) -> bool:
        """Whether the time-out has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def is_about_to_come(self) -> bool:
        """Whether it was asked for just now, and is not built on all ranks."""
        return not self.is_agreed and time.monotonic() - self.started < GATHERS

    @property
    def elapsed_ms(self) -> float:
        """Since the start."""
        return (time.monotonic() - self.started) * 1e3

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the module is built or has failed; return whether it did in time."""
        return self._done.wait(timeout)

    def run(self, build: Callable[[], nn.Module]) -> None:
        """Build in another thread. One that hangs does not keep the process alive.

        A thread that does not start is as one that fails.
        """
        try:
            threads.start(partial(self._build, build), f"fxgraft-{self.seed.name}")
        except RuntimeError as error:
            self.error = RuntimeError(f"the thread that builds its module cannot be started: {error}")
            self._done.set()

    def _build(self, build: Callable[[], nn.Module]) -> None:
        try:
            self.module = build()
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()
