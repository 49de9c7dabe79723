"""Code that no call needs yet, which a change with ``wait=True`` does not wait for.

The forward that runs first is compiled here, and the call returns. The compiler process makes the others
meanwhile, and they are taken in step by step. A call that comes before its code waits for it: so what is
computed does not depend on how long something took, and no call runs uncompiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from fxgraft.compiling.job import CompileTask, Job

MAX_FAILURES = 3
"""After so many in a row that failed, no other promise is made for this host."""

_LOOK_AGAIN = 0.05  # seconds


class Promises:
    """Jobs of the compiler process, for structures that run already.

    Args:
        timeout: in seconds, after which a call compiles what was promised to it; None: never.

    Attributes:
        failure: why the latest promise was not kept; None where it was.
        failures: how many in a row were not.
    """

    def __init__(self, timeout: float | None):
        self._timeout = timeout
        self._jobs: list[tuple[Job, Sequence[CompileTask]]] = []
        self.failure: str | None = None
        self.failures = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def make(self, job: Job, tasks: Sequence[CompileTask]) -> None:
        """Make calls of ``tasks`` wait for ``job``."""
        self._jobs.append((job, tasks))
        for task in tasks:
            task.variant.promised[task.kind] = partial(self._wait, job, tasks, task)

    @property
    def is_hopeless(self) -> bool:
        """Whether so many have failed that another one is not worth the try."""
        return self.failures >= MAX_FAILURES

    def fail(self, reason: str) -> None:
        """One was not kept, or could not be made."""
        self.failure, self.failures = reason, self.failures + 1

    def take(self, is_current: Callable[[CompileTask], bool]) -> bool:
        """Take in what has come, by one part of each job; leave the jobs none of whose tasks is current.

        Returns whether one has ended.
        """
        before = len(self._jobs)
        for job, tasks in list(self._jobs):
            if not any(map(is_current, tasks)):
                self._end(job, tasks)
                continue
            job.take()
            if job.is_over:
                self._end(job, tasks)
        return len(self._jobs) < before

    def _end(self, job: Job, tasks: Sequence[CompileTask]) -> None:
        self._jobs = [(other, theirs) for other, theirs in self._jobs if other is not job]
        reason = job.failure or job.unavailable or next(iter(job.failed.values()), None)
        if reason is not None:
            self.fail(reason)
        elif job.is_over:
            self.failure, self.failures = None, 0
        job.stop()
        for task in tasks:
            # What did not come is compiled by the call that needs it, or as the structure runs again.
            task.variant.promised.pop(task.kind, None)

    def _wait(self, job: Job, tasks: Sequence[CompileTask], task: CompileTask) -> None:
        """Wait for one task."""
        until = None if self._timeout is None else time.monotonic() + self._timeout
        while task.kind in task.variant.promised:
            job.take()
            if job.is_over or (until is not None and time.monotonic() > until):
                self._end(job, tasks)
            elif not job.has_arrived:
                job.wait(_LOOK_AGAIN)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the compiler process has sent all."""
        for job, _ in self._jobs:
            job.wait(timeout)
