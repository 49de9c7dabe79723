"""Changes of the structure that training does not wait for.

A change goes through: its modules are built (in a thread), the code that its structure lacks is
compiled (in the compiler process, where the host is compiled), and it lands: on the training thread, at a
step boundary, whole or not at all. Until then the host runs what it ran. Everything that is built when
the compiler process is free goes into one structure.

Where that cannot help, the change compiles when it lands, as it does with ``wait=True``. Whatever preparing
raises is caught in one place, `Background.step`: the change lands without help, or is given up, and the log
says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from fxgraft.compiling import helper
from fxgraft.distributed.peers import Peers
from fxgraft.errors import DistributedError
from fxgraft.host import engine
from fxgraft.lifecycle.change import Change
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager.prefetch import Pending
from fxgraft.manager.preparation import Agreement, Preparation
from fxgraft.manager.promised import Promised
from fxgraft.manager.reporter import Reporter
from fxgraft.manager.waiting import Waiting
from fxgraft.seeds.seed import Seed
from fxgraft.slots.structure import Structure
from fxgraft.telemetry.events import logger
from fxgraft_passes import Graft, Slot

if TYPE_CHECKING:
    from fxgraft.compiling.compiled import CompiledHost
    from fxgraft.compiling.job import Job

_NOTHING = Change()
_READY, _FAILED = "ready to land", "failed to prepare"  # what ranks tell each other


@dataclass
class Attempt:
    """What one step has come to, should it raise: whether it chooses a change, or which it has begun with."""

    is_choosing: bool = False
    change: Change = _NOTHING


class Background:
    """The changes in preparation.

    Args:
        lifecycle: carries changes out.
        reporter: hears of it.
        peers: the other ranks: all land the same change in the same step.
        timeout: in seconds, after which a germination whose module is not built, or is not compiled as
            long after that, is given up; None: never.
        helper: ``"auto"``: compile in another process where that can be; ``"off"``: never.

    Attributes:
        waiting: what was asked for and has not landed.
        is_landing: whether a change lands now.
    """

    def __init__(
        self, lifecycle: Lifecycle, reporter: Reporter, peers: Peers, timeout: float | None, helper: str
    ):
        self._lifecycle = lifecycle
        self._host = lifecycle.host
        self._peers = peers
        self._timeout = timeout
        self._helper = helper
        self.waiting = Waiting(lifecycle, reporter, self._withdraw)
        self._next = Agreement()
        self._preparation: Preparation | None = None
        self._old_news = 0
        self._said: set[str] = set()
        self._warm: CompiledHost | None = None  # that the compiler process was started for
        self._promised = Promised(self._host, timeout)
        self.is_landing = False

    def germinate(self, seed: Seed, slot: Slot, build: Callable[[], nn.Module]) -> None:
        """Begin to build the module of ``seed``, which is in GERMINATED until it is live."""
        self.waiting.germinate(seed, slot, build, self._deadline())

    def wait(self, timeout: float | None = None) -> bool:
        """Block until what is in preparation is built, and compiled as far as that was begun.

        Returns whether it was in time. Only `step` lets it land, or begins to compile.
        """
        built = all(pending.wait(timeout) for pending in self.waiting.pending.values())
        self._promised.wait(timeout)
        if self._preparation is not None:
            self._preparation.job.wait(timeout)
        return built

    # At a step boundary

    @property
    def is_idle(self) -> bool:
        """Whether `step` would do nothing. False is not certain."""
        waiting, compiled = self.waiting, self._host.compiled
        if self._preparation is not None or waiting.pending or waiting.acts or waiting.fossils:
            return False
        if self._lifecycle.departing:
            return False
        if self._promised:
            return False
        return compiled is None or (self._warm is compiled and compiled.news == self._old_news)

    def step(self) -> None:
        """Take in what has come, let a change land that is ready, and begin with the next.

        Raises:
            DistributedError: a rank is gone.
        """
        if self.is_idle:
            return
        attempt = Attempt()
        try:
            self._advance(attempt)
        except DistributedError:
            raise
        except Exception as error:  # of whatever prepares a change: no reason to end the training
            self._recover(attempt, f"{type(error).__name__}: {error}")

    def _advance(self, attempt: Attempt) -> None:
        if self._warm is not (compiled := self._host.compiled) and compiled is not None:
            self._warm = compiled
            if self._helper != "off":
                self._promised.stand_by(compiled)
        if self._promised:
            self._promised.take()
        for pending in list(self.waiting.pending.values()):
            if failed := self._peers.anyone_says(f"{pending.seed.name} failed", self._trouble(pending)):
                self.waiting.fail(pending.seed, failed)
            elif pending.module is not None and self._peers.all_say(f"{pending.seed.name} is built"):
                pending.is_agreed = True
        if self._preparation is not None:
            self._follow(self._preparation)
        if self._preparation is None:
            self._begin(attempt)

    @property
    def is_compiling(self) -> bool:
        """Whether the compiler process works for this host."""
        return self._preparation is not None or bool(self._promised)

    def _recover(self, attempt: Attempt, reason: str) -> None:
        """Preparing has raised: the change lands without help; where that raises too, it is given up."""
        prepared, self._preparation = self._preparation, None
        change = attempt.change
        if prepared is not None:
            change = prepared.change if prepared.change != _NOTHING else change
            prepared.job.stop()
            prepared.job.leave_rest()
        if change == _NOTHING and not attempt.is_choosing:
            self._say_once(f"compiling what runs in the background has failed: {reason}")
            return
        self._next.failures += 1
        if change == _NOTHING:
            self._say_once(f"choosing the next change has failed: {reason}")
            if self._next.failures > 2:
                self.waiting.fail_all(reason)
                self._settle()
            return
        if self._next.failures == 1:
            self._next.unaided = change.names
            self._say_once(f"a change compiles as it lands, as preparing it has failed: {reason}")
        elif self._next.failures == 2:
            self._next.broken = reason  # the other ranks are told, and give it up in the same step
        else:
            self.waiting.fail_change(change, reason)
            self._settle()

    def _trouble(self, pending: Pending) -> str | None:
        """Why it comes to nothing on this rank, if it does."""
        if pending.is_late:
            return f"not ready after {self._timeout} s"
        return str(pending.error) if pending.is_built and pending.module is None else None

    def _begin(self, attempt: Attempt) -> None:
        attempt.is_choosing = not self.waiting.is_empty
        change = self._next_change() if attempt.is_choosing else _NOTHING
        attempt.is_choosing = False
        if change == _NOTHING:
            self._tend()
            return
        agreed = self._agreed(change)
        if agreed is None:
            return
        if agreed == _NOTHING:  # what was chosen was taken back
            self._settle()
            return
        attempt.change = agreed
        if reason := self._peers.anyone_says(_FAILED, self._next.broken):
            self._give_up(agreed, reason)
            return
        structure = self._host.structure
        target = agreed.target(structure)
        if agreed.growths:
            self._begin_growth(agreed, target)
            return
        compiled = self._host.compiled
        grafts = self._grafts(agreed)
        tasks = (
            compiled.tasks_for(target, structure, grafts, bool(agreed.ramps)) if compiled is not None else []
        )
        if tasks and self._next.unaided != agreed.names and self._can_help():
            for birth in agreed.births:  # the time that is up is that of building, or of compiling
                if not agreed.whole:
                    self.waiting.pending[birth.seed.name].deadline = self._deadline()
            self._start(engine.compile_in_helper(self._host, target, grafts, tasks), target, agreed)
        elif self._peers.all_say(_READY, agreed.names):
            self._land(agreed, compiled=not tasks)

    def _begin_growth(self, change: Change, target: Structure) -> None:
        """Layers of other sizes are compiled as a whole: the host is what it will be for that moment."""
        host = self._host
        if host.compiled is not None and self._next.unaided != change.names and self._can_help():
            with self._lifecycle.rehearsing(change):
                wider = host.compiled
                tasks = wider.tasks_for_all(host.structure, host.grafts())
                job = engine.compile_in_helper(host, host.structure, host.grafts(), tasks)
            self._start(job, target, change, wider)
        elif self._peers.all_say(_READY, change.names):
            self._land(change, compiled=True)

    def _agreed(self, change: Change) -> Change | None:
        """What of ``change`` all ranks land: what is ready on rank 0. None before they have heard of that."""
        agreed = self._next
        said = self._peers.leader_says("next change", agreed.names or change.names)
        agreed.names = agreed.names or said
        return None if agreed.names is None else change.only(agreed.names)

    def _next_change(self) -> Change:
        prepared = self._prepared_change
        return self.waiting.next_change(prepared.names if prepared != _NOTHING else self._next.names)

    @property
    def _prepared_change(self) -> Change:
        """What the compiler process compiles for."""
        return _NOTHING if self._preparation is None else self._preparation.change

    def _tend(self) -> None:
        """With nothing else to do, compile what the running structure would be better off with."""
        compiled = self._host.compiled
        if compiled is None or compiled.news == self._old_news:
            return
        self._old_news = compiled.news
        structure, grafts = self._host.structure, self._host.grafts()
        tasks = compiled.tasks_wanted() or compiled.tasks_settled(structure, grafts)
        try:
            if tasks and self._can_help():
                job = engine.compile_in_helper(self._host, structure, grafts, tasks)
                self._start(job, structure, _NOTHING)
        finally:  # what cannot be given to another process compiles here
            for task in tasks if self._preparation is None else ():
                task.leave()

    def _start(self, job: Job, target: Structure, change: Change, wider: CompiledHost | None = None) -> None:
        structure = self._host.structure
        self._preparation = Preparation(job, change, structure, target, self._deadline(), wider)

    def _follow(self, prepared: Preparation) -> None:
        job = prepared.job
        if self._host.structure is not prepared.base:  # which another change has replaced
            self._drop()
            return
        job.take()
        if job.unavailable is not None:
            self._go_on_without(prepared, job.unavailable)
            return
        failure = job.failure
        if failure is None and prepared.is_late:
            failure = f"not compiled after {self._timeout} s"
        if prepared.change == _NOTHING:
            if failure is not None:
                self._give_up(prepared.change, failure)
        else:
            self._agreed(prepared.change)
            if reason := self._peers.anyone_says(_FAILED, failure):
                self._give_up(prepared.change, reason)
            elif job.is_ready and self._peers.all_say(_READY, prepared.change.names):
                self._land_prepared(prepared)
        if self._preparation is prepared and job.is_over:
            for reason in job.failed.values():
                logger.warning("the compiler process could not compile for the host as it is: %s", reason)
            job.leave_rest()
            self._drop()
            self._look_again()

    def _go_on_without(self, prepared: Preparation, reason: str) -> None:
        """No compiler process can be had after all: the change compiles as it lands, and other ranks wait."""
        self._say_why_not(reason)
        self._next.unaided = prepared.change.names
        self._preparation = None
        if prepared.change == _NOTHING:
            prepared.job.leave_rest()
            self._look_again()

    def _look_again(self) -> None:
        """Let each unit run what there is code for now."""
        engine.set_structure(self._host, self._host.structure, self._host.phase, self._host.grafts())

    def _land_prepared(self, prepared: Preparation) -> None:
        job, change = prepared.job, self._next_change().only(prepared.change.names)
        if change.target(self._host.structure).key != prepared.target.key:
            self._drop()  # the host was converted, or a seed was taken back
            return
        for reason in job.failed.values():
            logger.warning("compiling at the swap what the compiler process could not: %s", reason)
        prepared.change = _NOTHING  # what is left of the job is for what runs then
        if (compiled := prepared.wider or self._host.compiled) is not None and not job.is_over:
            compiled.expect_help(prepared.target)  # the forward that seeds blend by is still to come
        self._land(change, compiled=job.is_whole)
        prepared.base = self._host.structure

    def _give_up(self, change: Change, reason: str) -> None:
        """Preparing broke down. Seeds to be born are given up; what must go or stay does so without help."""
        logger.warning("%s", reason)
        if self._preparation is not None:
            self._preparation.job.leave_rest()
        self._drop()
        if change.whole:
            self.waiting.fail_act(reason)
            return
        for birth in change.births:
            self.waiting.fail(birth.seed, reason)
        rest = Change(departed=change.departed, fossils=change.fossils)
        if rest != _NOTHING:
            self._land(rest, compiled=False)

    def _withdraw(self, seed: Seed | None) -> None:
        """What is prepared for ``seed`` is void; None: what is prepared for an act."""
        change = self._prepared_change
        lands = [birth.seed for birth in change.births] + [fossil for fossil, _ in change.fossils]
        if change.whole if seed is None else any(one is seed for one in lands):
            self._drop()

    def _drop(self) -> None:
        if self._preparation is not None:
            self._preparation.job.stop()
        self._preparation = None
        self._settle()

    def _settle(self) -> None:
        """Nothing is agreed on any more: the next change is chosen anew."""
        self._next = Agreement()
        self._peers.withdraw()

    # Landing

    def _land(self, change: Change, compiled: bool) -> None:
        self._settle()
        self.is_landing = True
        try:
            self._lifecycle.commit(change, warm_up=not compiled)
        except Exception as error:  # of a compiler, of memory: no reason to end the training
            reason = f"{type(error).__name__}: {error}"
            if change.whole or len(change.parts) == 1:
                self.waiting.fail_change(change, reason)
                return
            for part in change.parts:  # one of several is at fault: the others land without it
                self._land(part, compiled=False)
            return
        finally:
            self.is_landing = False
        self.waiting.landed(change)

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _grafts(self, change: Change) -> Mapping[str, Graft]:
        return self._host.grafts() | {birth.seed.name: birth.graft for birth in change.births}

    def _can_help(self) -> bool:
        if self._helper == "off":
            return False
        reason = helper.unavailable()
        if reason is not None:
            self._say_why_not(reason)
        return reason is None

    def _say_why_not(self, reason: str) -> None:
        self._say_once(
            f"no compiler process compiles in the background ({reason}): changes compile as they land"
        )

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)
