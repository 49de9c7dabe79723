"""Prepare seeds off the training thread: for blueprints that take long to build or to load.

Only the building happens there. What changes the host happens on the training thread, at a step
boundary, by the same code as without prefetching.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from fxgraft.lifecycle import Lifecycle
from fxgraft.nursery import surroundings
from fxgraft.reporter import Reporter
from fxgraft.seed import Seed
from fxgraft.stage import Stage
from fxgraft.telemetry.events import logger
from fxgraft_passes import Slot


@dataclass(eq=False)
class Pending:
    """A germination in preparation.

    Attributes:
        seed: in GERMINATED.
        slot: where it goes.
        deadline: on the monotonic clock, or None.
        started: likewise.
        module: the result, once it is there.
        error: why there is none.
    """

    seed: Seed
    slot: Slot
    deadline: float | None
    started: float = field(default_factory=time.monotonic)
    module: nn.Module | None = None
    error: BaseException | None = None
    _done: threading.Event = field(default_factory=threading.Event)

    @property
    def is_done(self) -> bool:
        """Whether it is ready, failed or late."""
        return self._done.is_set() or self.is_late

    @property
    def is_late(self) -> bool:
        """Whether the time-out has passed without a result."""
        late = self.deadline is not None and time.monotonic() > self.deadline
        return late and not self._done.is_set()

    @property
    def elapsed_ms(self) -> float:
        """Since the start."""
        return (time.monotonic() - self.started) * 1e3

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the module is built or has failed; return whether it did in time."""
        return self._done.wait(timeout)

    def run(self, build: Callable[[], nn.Module]) -> None:
        """Build in a daemon thread: one that hangs does not keep the process alive."""
        threading.Thread(
            target=self._build, args=(build,), name=f"fxgraft-{self.seed.name}", daemon=True
        ).start()

    def _build(self, build: Callable[[], nn.Module]) -> None:
        try:
            self.module = build()
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()


class Prefetcher:
    """The germinations in preparation.

    Args:
        lifecycle: lets seeds go live.
        reporter: hears of it.
        timeout: in seconds, after which a preparation is given up; None: never.
    """

    def __init__(self, lifecycle: Lifecycle, reporter: Reporter, timeout: float | None):
        self._lifecycle = lifecycle
        self._reporter = reporter
        self._timeout = timeout
        self._pending: dict[str, Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def start(self, seed: Seed, slot: Slot, build: Callable[[], nn.Module]) -> None:
        """Begin to build the module of ``seed``, which is in GERMINATED until it is live."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        pending = Pending(seed, slot, deadline)
        self._pending[seed.name] = pending
        self._lifecycle.seeds[seed.name] = seed
        pending.run(build)

    def cancel(self, seed: Seed) -> None:
        """Forget a preparation; what it still builds is dropped."""
        if self._pending.pop(seed.name, None) is not None:
            self._reporter.prefetch_failed(seed, "cancelled")

    def wait(self, timeout: float | None = None) -> bool:
        """Block until everything in preparation is built; return whether it was in time."""
        return all(pending.wait(timeout) for pending in self._pending.values())

    def step(self) -> None:
        """At a step boundary: let those that are ready go live, and give up those that failed."""
        for pending in [p for p in self._pending.values() if p.is_done]:
            del self._pending[pending.seed.name]
            self._land(pending)

    def _land(self, pending: Pending) -> None:
        seed, reason = pending.seed, str(pending.error)
        if pending.is_late:
            reason = f"not ready after {self._timeout} s"
        if pending.module is not None:
            # The host may have been converted since the module was built for it.
            around = surroundings(self._lifecycle.host, pending.slot)
            try:
                pending.module.to(device=around.device, dtype=around.dtype)
                self._lifecycle.go_live(seed, pending.slot, pending.module)
                self._reporter.live_after(pending.elapsed_ms, seed, prefetched=True)
                return
            except Exception as error:  # of a compiler, of memory: no reason to end the training
                reason = f"{type(error).__name__}: {error}"
        logger.warning("seed %r did not go live: %s", seed.name, reason)
        self._lifecycle.seeds.pop(seed.name, None)
        seed.leave(Stage.CULLED)
        self._reporter.prefetch_failed(seed, reason)
