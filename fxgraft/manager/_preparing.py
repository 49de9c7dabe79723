"""The change that is applied next: chosen, compiled for in the compiler process, and then carried out.

On several ranks all of them apply the same change in the same step (`fxgraft.manager._agreement`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fxgraft.host import engine
from fxgraft.host.current_form import current_form
from fxgraft.host.host import Host
from fxgraft.lifecycle.change import Change
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager._agreement import Agreement
from fxgraft.manager._compiler_help import CompilerHelp
from fxgraft.manager._preparation import NOTHING, Applier, Attempt, Preparation
from fxgraft.manager._waiting import Waiting
from fxgraft.seeds.seed import Seed
from fxgraft.slots.structure import Structure
from fxgraft.telemetry.events import logger
from fxgraft_passes import Graft

if TYPE_CHECKING:
    from fxgraft.compiling.job import Job


class Preparing:
    """What is prepared now, if anything is.

    Args:
        lifecycle: of the seeds.
        waiting: what was asked for.
        applier: carries changes out.
        help: the compiler process.
        agreement: with the other ranks.
        size: how many ranks there are.
        timeout: in seconds, after which what the compiler process was asked for is given up; None: never.

    Attributes:
        now: the job of the compiler process that is awaited.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        waiting: Waiting,
        applier: Applier,
        help: CompilerHelp,
        agreement: Agreement,
        size: int,
        timeout: float | None,
    ):
        self._lifecycle, self._waiting, self._applier, self._help = lifecycle, waiting, applier, help
        self._host: Host = lifecycle.host
        self._agreement, self._size = agreement, size
        self.timeout = timeout
        self.now: Preparation | None = None

    def deadline(self) -> float | None:
        """Until when something that begins now has time, on the monotonic clock; None: for ever."""
        return None if self.timeout is None else time.monotonic() + self.timeout

    # It is decided

    def decide(self, attempt: Attempt) -> bool:
        """Apply the next change, or give it up, if the ranks have come to that; return whether so."""
        agreement = self._agreement
        if agreement.receive() and self._is_for_change:
            self.drop()  # it is for another change
        names = agreement.next.names
        reason, ready = agreement.failure, agreement.ready
        if names is None or (reason is None and ready is None):
            return False
        change = self._chosen(attempt).only(names)
        if reason is not None:
            self._give_up(change, reason)
        elif change.names != ready:  # it is not what it was: a part was cancelled since, say
            self.drop()
            agreement.settle()
        else:
            self._apply_prepared(change)
        return True

    @property
    def _is_for_change(self) -> bool:
        """Whether a job is awaited that is for a change, and not for what runs already."""
        return self.now is not None and self.now.change != NOTHING

    # It is chosen

    def begin(self, attempt: Attempt) -> bool:
        """Begin with the next change; return whether there is one."""
        is_free = self._host.compiled is not None and self._agreement.next.names is None
        if is_free and (self._waiting.is_gathering or self._waiting.holds_back()):
            return True
        change = NOTHING if self._waiting.is_empty else self._chosen(attempt)
        if change == NOTHING and self._agreement.next.names is None:
            return False
        names = self._agreement.propose(change.names)
        if names is None:
            return True
        agreed = change.only(names)
        if agreed == NOTHING:  # all of what was chosen was cancelled
            self._agreement.settle()
            return True
        attempt.change = agreed
        self._begin(agreed)
        return True

    def _chosen(self, attempt: Attempt) -> Change:
        attempt.is_choosing = True
        change = self.next_change()
        attempt.is_choosing = False
        return change

    def next_change(self) -> Change:
        """What is applied next, as things are now."""
        change = NOTHING if self.now is None else self.now.change
        return self._waiting.next_change(change.names if change != NOTHING else self._agreement.next.names)

    def _begin(self, change: Change) -> None:
        if (broken := self._agreement.next.broken) is not None:
            self._agreement.say_failed(broken)
            return
        host = self._host
        structure, compiled = host.structure, host.compiled
        target = change.target(structure)
        if change.growths:
            self._begin_growth(change, target)
            return
        grafts = self._grafts(change)
        tasks = (
            compiled.tasks_for(target, structure, grafts, bool(change.ramps)) if compiled is not None else []
        )
        if tasks and self._is_helped(change):
            for addition in change.additions:  # the time that is up is that of building, or of compiling
                if not change.is_act:
                    self._waiting.pending[addition.seed.name].deadline = self.deadline()
            self.start(engine.compile_in_helper(host, target, grafts, tasks), target, change)
        else:
            self._agreement.next.has_code = not tasks
            self._agreement.say_ready(change.names)

    def _begin_growth(self, change: Change, target: Structure) -> None:
        """Layers of other sizes are compiled as a whole: the host is what it will be for that moment."""
        host, job = self._host, None
        if host.compiled is not None and self._is_helped(change):
            if not change.moves_grafts and change.growths[0].plan():
                return  # which was enough for one step
            with self._lifecycle.dry_run(change):
                wider, grown = host.compiled, host.structure
                if tasks := wider.wanted.for_all(grown, host.grafts()):
                    job = engine.compile_in_helper(host, grown, host.grafts(), tasks)
            if job is not None:
                began, deadline = host.structure, self.deadline()
                self.now = Preparation(job, change, began, target, deadline, wider, grown, current_form(host))
                return
        self._agreement.next.has_code = True
        self._agreement.say_ready(change.names)

    def _is_helped(self, change: Change) -> bool:
        return self._agreement.next.unaided != change.names and self._help.is_there()

    def _grafts(self, change: Change) -> Mapping[str, Graft]:
        return self._host.grafts() | {addition.seed.name: addition.graft for addition in change.additions}

    def start(self, job: Job, target: Structure, change: Change) -> None:
        """Await a job: for ``change``, or for what runs already where that is empty."""
        self.now = Preparation(job, change, self._host.structure, target, self.deadline())

    # It is compiled for

    def follow(self) -> None:
        """Take in what the compiler process has sent, and say so once all is there that the change needs."""
        prepared = self.now
        if prepared is None:
            return
        job = prepared.job
        self._agreement.repeat()
        if self._host.structure is not prepared.base:  # which another change has replaced
            self.drop()
            return
        has_taken = job.take()  # which is enough for one step: then it is applied in the next one
        if job.unavailable is not None:
            self._go_on_without(prepared, job.unavailable)
            return
        failure = job.failure
        if failure is None and prepared.is_late:
            failure = f"not compiled after {self.timeout} s"
        if prepared.change == NOTHING:
            if failure is not None:
                self._end_with(failure)
            elif job.is_over and not has_taken:
                self._end(prepared)
        elif failure is not None:
            self._agreement.say_failed(failure)
        elif job.is_ready and not has_taken:
            self._agreement.say_ready(prepared.change.names)

    def _end(self, prepared: Preparation) -> None:
        """Nothing more comes from the compiler process."""
        for reason in prepared.job.failed.values():
            logger.warning("the compiler process could not compile for the host as it is: %s", reason)
        prepared.job.leave_rest()
        self.drop()
        self._look_again()

    def _go_on_without(self, prepared: Preparation, reason: str) -> None:
        """There is no compiler process: the change compiles when it is applied, and other ranks wait."""
        self._help.warn_of_reason(reason)
        self._agreement.next.unaided = prepared.change.names
        self.now = None
        if prepared.change == NOTHING:
            prepared.job.leave_rest()
            self._look_again()

    def _look_again(self) -> None:
        """Make each unit run what there is code for now."""
        engine.set_structure(self._host, self._host.structure, self._host.phase, self._host.grafts())

    # It is applied, or fails

    def _apply_prepared(self, change: Change) -> None:
        prepared = self.now
        if prepared is None or prepared.change == NOTHING:
            self._apply(change, self._agreement.next.has_code)
            return
        is_other = change.target(self._host.structure).key != prepared.target.key
        if is_other or not prepared.is_of(self._host):
            self.drop()  # the host was converted since: it is prepared anew, if no other rank applies it now
            if self._size > 1:
                self._apply(change, compiled=False)
            return
        job = prepared.job
        for reason in job.failed.values():
            logger.warning("compiling at the swap what the compiler process could not: %s", reason)
        prepared.change = NOTHING  # what is left of the job is for what runs then
        if (compiled := prepared.wider or self._host.compiled) is not None and not job.is_over:
            # The forward that seeds blend by is still to come.
            compiled.expect_help(prepared.grown or prepared.target)
        self._apply(change, compiled=job.has_all_required)
        prepared.base = self._host.structure
        if job.is_over:
            self._end(prepared)

    def _apply(self, change: Change, compiled: bool) -> None:
        self._agreement.settle()
        self._applier.apply(change, compiled)

    def _end_with(self, reason: str) -> None:
        """Nothing comes from the compiler process: what it was for does without."""
        logger.warning("%s", reason)
        if self.now is not None:
            self.now.job.leave_rest()
        self.drop()

    def _give_up(self, change: Change, reason: str) -> None:
        """Preparing broke down. Seeds to be added are given up; what must go or stay does so without help."""
        if self._is_for_change:
            self._end_with(reason)
        else:
            logger.warning("%s", reason)
        self._agreement.settle()
        if change.is_act:
            self._waiting.fail_act(reason)
            return
        for addition in change.additions:
            self._waiting.fail(addition.seed, reason)
        rest = Change(departed=change.departed, fossils=change.fossils)
        if rest != NOTHING:
            self._apply(rest, compiled=False)

    def withdraw(self, seed: Seed | None) -> None:
        """What is prepared for ``seed`` is void; None: what is prepared for an act."""
        change = NOTHING if self.now is None else self.now.change
        added = [addition.seed for addition in change.additions] + [fossil for fossil, _ in change.fossils]
        if change.is_act if seed is None else any(one is seed for one in added):
            self.drop()

    def drop(self) -> None:
        """Do not wait any more for what the compiler process was asked for."""
        if self.now is not None:
            self.now.job.stop()
        self.now = None
