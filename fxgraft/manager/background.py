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
from typing import TYPE_CHECKING

from torch import nn

from fxgraft.compiling import helper
from fxgraft.distributed.peers import Peers
from fxgraft.errors import DistributedError
from fxgraft.host import engine
from fxgraft.lifecycle.act import Act, PlannedCourse
from fxgraft.lifecycle.change import Birth, Change, Names, is_whole
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.lifecycle.nursery import follow, surroundings
from fxgraft.manager.prefetch import Pending
from fxgraft.manager.reporter import Reporter
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.slots.structure import Structure
from fxgraft.telemetry.events import logger
from fxgraft_passes import Graft, Slot

if TYPE_CHECKING:
    from fxgraft.compiling.job import Job

_NOTHING = Change()
_READY, _FAILED = "ready to land", "failed to prepare"  # what ranks tell each other


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
        is_landing: whether a change lands now.
    """

    def __init__(
        self, lifecycle: Lifecycle, reporter: Reporter, peers: Peers, timeout: float | None, helper: str
    ):
        self._lifecycle = lifecycle
        self._host = lifecycle.host
        self._reporter = reporter
        self._peers = peers
        self._timeout = timeout
        self._helper = helper
        self._pending: dict[str, Pending] = {}
        self._acts: list[Act] = []
        self._fossils: dict[str, Seed] = {}
        self._job: Job | None = None
        self._lands = _NOTHING  # what the job is for; nothing, where it is for what runs already
        self._choice: Names | None = None  # what all ranks land together next
        self._target = self._base = Structure()
        self._old_news = 0
        self._job_deadline: float | None = None
        self._trying = _NOTHING  # what is being begun with
        self._is_choosing = False
        self._unaided: Names | None = None  # the change that the compiler process cannot help with
        self._broken: str | None = None  # why that cannot land either
        self._failures = 0  # to prepare the change that is next
        self._left: frozenset[str] = frozenset()  # culled seeds whose grafts could not be taken out
        self._said: set[str] = set()
        self._is_warm = False
        self.is_landing = False

    def __len__(self) -> int:
        return len(self._pending) + sum(course.is_birth for act in self._acts for course in act.courses)

    # What is asked for

    def germinate(self, seed: Seed, slot: Slot, build: Callable[[], nn.Module]) -> None:
        """Begin to build the module of ``seed``, which is in GERMINATED until it is live."""
        pending = Pending(seed, slot, self._deadline())
        self._pending[seed.name] = pending
        pending.run(build)

    def fossilize(self, seed: Seed) -> None:
        """Let ``seed`` become permanent when the code for that is there."""
        self._fossils[seed.name] = seed

    def take_in(self, act: Act) -> None:
        """Let ``act`` land when the code for it is there; the acts before it come first."""
        self._acts.append(act)

    def follow(self, act: Act) -> None:
        """After ``act`` has landed: what else follows from it."""
        for course in act.courses:
            seed = course.seed
            if course.stage is Stage.CULLED:
                self._let_go(course)
                continue
            self.leave_open(seed)
            if course.paused is not None and seed.is_live:
                self._lifecycle.pause(seed, course.paused)
            for told in course.told:
                told()

    def _let_go(self, course: PlannedCourse) -> None:
        seed = course.seed
        if course.module is not None:  # it never came
            self._lifecycle.seeds.pop(seed.name, None)
            seed.leave(Stage.CULLED)
        elif seed.name in self._lifecycle.seeds:  # in preparation
            self.cancel(seed)
            self._lifecycle.cull(seed)
        else:
            self.leave_open(seed)
            self._lifecycle.let_leave(seed)

    def leave_open(self, seed: Seed) -> None:
        """Let what was planned for a live seed not be: that it becomes permanent, or its part in an act."""
        if self._fossils.pop(seed.name, None) is not None:
            self._drop_job_for(seed)
        self._forget(seed)

    def cancel(self, seed: Seed) -> None:
        """Forget what is in preparation for ``seed``; what is still built for it is dropped."""
        has_come = self._pending.pop(seed.name, None) is not None
        if has_come:
            self._drop_job_for(seed)
        if has_come or any(act.course(seed).is_birth for act in self._acts):
            self._reporter.prefetch_failed(seed, "cancelled")
        self.leave_open(seed)

    def _forget(self, seed: Seed) -> None:
        """Take ``seed`` out of the acts in preparation; the rest of these lands without it."""
        for act in list(self._acts):
            if not act.forget(seed):
                continue
            if act is self._acts[0] and self._lands.whole:
                self._drop_job()
            if not act.courses:
                self._acts.remove(act)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until what is in preparation is built, and compiled as far as that was begun.

        Returns whether it was in time. Only `step` lets it land, or begins to compile.
        """
        built = all(pending.wait(timeout) for pending in self._pending.values())
        if self._job is not None:
            self._job.wait(timeout)
        return built

    # At a step boundary

    def step(self) -> None:
        """Take in what has come, let a change land that is ready, and begin with the next.

        Raises:
            DistributedError: a rank is gone.
        """
        try:
            self._advance()
        except DistributedError:
            raise
        except Exception as error:  # of whatever prepares a change: no reason to end the training
            self._recover(f"{type(error).__name__}: {error}")

    def _advance(self) -> None:
        self._trying, self._is_choosing = _NOTHING, False
        if not self._is_warm and self._host.compiled is not None and self._helper != "off":
            self._is_warm = True
            helper.warm()  # with the first step of a compiled host: it is ready when it is needed
        for pending in list(self._pending.values()):
            if failed := self._peers.anyone_says(f"{pending.seed.name} failed", self._trouble(pending)):
                self._fail(pending.seed, failed)
            elif pending.module is not None and self._peers.all_say(f"{pending.seed.name} is built"):
                pending.is_agreed = True
        if self._job is not None:
            self._follow(self._job)
        if self._job is None:
            self._begin()

    def _recover(self, reason: str) -> None:
        """Preparing has raised: the change lands without help; where that raises too, it is given up."""
        change, job = self._lands if self._lands != _NOTHING else self._trying, self._job
        self._job, self._lands, self._trying = None, _NOTHING, _NOTHING
        if job is not None:
            job.stop()
            job.leave_rest()
        if change == _NOTHING and not self._is_choosing:
            self._say_once(f"compiling what runs in the background has failed: {reason}")
            return
        self._failures += 1
        if change == _NOTHING:
            self._say_once(f"choosing the next change has failed: {reason}")
            if self._failures > 2:
                self._give_all_up(reason)
            return
        if self._failures == 1:
            self._unaided = change.names
            self._say_once(f"a change compiles as it lands, as preparing it has failed: {reason}")
        elif self._failures == 2:
            self._broken = reason  # the other ranks are told, and give it up in the same step
        else:
            self._fail_change(change, reason)
            self._settle()

    def _give_all_up(self, reason: str) -> None:
        """It cannot even be said which change is next: what waits does not come."""
        for pending in self._pending.values():
            if pending.is_agreed:  # told to the other ranks with the next step
                pending.module, pending.error = None, RuntimeError(reason)
        while self._acts:
            self._fail_act(reason)
        for seed in list(self._fossils.values()):
            self._fail_fossil(seed, reason)
        self._left |= self._lifecycle.departing
        self._settle()

    def _trouble(self, pending: Pending) -> str | None:
        """Why it comes to nothing on this rank, if it does."""
        if pending.is_late:
            return f"not ready after {self._timeout} s"
        return str(pending.error) if pending.is_built and pending.module is None else None

    def _begin(self) -> None:
        waiting = self._acts or self._pending or self._fossils or self._lifecycle.departing - self._left
        self._is_choosing = bool(waiting)
        change = self._next_change() if waiting else _NOTHING
        self._is_choosing = False
        if not waiting or change == _NOTHING:
            self._tend()
            return
        agreed = self._agreed(change)
        if agreed is None:
            return
        if agreed == _NOTHING:  # what was chosen was taken back
            self._settle()
            return
        self._trying = agreed
        if reason := self._peers.anyone_says(_FAILED, self._broken):
            self._give_up(agreed, reason)
            return
        structure = self._host.structure
        target = agreed.target(structure)
        compiled = self._host.compiled
        grafts = self._grafts(agreed)
        tasks = (
            compiled.tasks_for(target, structure, grafts, bool(agreed.ramps)) if compiled is not None else []
        )
        if tasks and self._unaided != agreed.names and self._can_help():
            for birth in agreed.births:  # the time that is up is that of building, or of compiling
                if not agreed.whole:
                    self._pending[birth.seed.name].deadline = self._deadline()
            self._start(engine.compile_in_helper(self._host, target, grafts, tasks), target)
            self._lands = agreed
        elif self._peers.all_say(_READY, agreed.names):
            self._land(agreed, compiled=not tasks)

    def _agreed(self, change: Change) -> Change | None:
        """What of ``change`` all ranks land: what is ready on rank 0. None before they have heard of that."""
        said = self._peers.leader_says("next change", self._choice or change.names)
        self._choice = self._choice or said
        return None if self._choice is None else change.only(self._choice)

    def _next_change(self) -> Change:
        begun = self._lands.names if self._lands != _NOTHING else self._choice
        while self._acts and (begun is None or is_whole(begun)):  # else the acts come after it
            try:
                return self._acts[0].change(self._lifecycle)
            except Exception as error:  # the host was converted, say, so that it does not fit any more
                self._fail_act(f"{type(error).__name__}: {error}")
        births = [self._conceive(p) for p in list(self._pending.values()) if p.is_agreed]
        fossils = [seed for seed in self._fossils.values() if seed.stage is Stage.HOLDING]
        return Change(
            births=tuple(birth for birth in births if birth is not None),
            departed=tuple(sorted(self._lifecycle.departing - self._left)),
            fossils=tuple((seed, self._lifecycle.fossil(seed, seed.alpha)) for seed in fossils),
        )

    def _conceive(self, pending: Pending) -> Birth | None:
        """The birth as the host is now: it may have been converted since the module was built."""
        assert pending.module is not None
        around = surroundings(self._host, pending.slot)
        try:
            follow(pending.module, around)
            return self._lifecycle.plan_birth(pending.seed, pending.slot, pending.module)
        except Exception as error:
            self._fail(pending.seed, f"{type(error).__name__}: {error}")
            return None

    def _tend(self) -> None:
        """With nothing else to do, compile what the running structure would be better off with."""
        compiled = self._host.compiled
        if compiled is None or compiled.news == self._old_news:
            return
        self._old_news = compiled.news
        structure, grafts = self._host.structure, self._host.grafts()
        tasks = compiled.tasks_wanted() or compiled.tasks_settled(structure, grafts)
        if tasks and self._can_help():
            self._start(engine.compile_in_helper(self._host, structure, grafts, tasks), structure)
        for task in tasks if self._job is None else ():
            task.leave()

    def _start(self, job: Job, target: Structure) -> None:
        self._job, self._base, self._target = job, self._host.structure, target
        self._job_deadline = self._deadline()

    def _follow(self, job: Job) -> None:
        if self._host.structure is not self._base:  # which another change has replaced
            self._drop_job()
            return
        job.take()
        if job.unavailable is not None:
            self._go_on_without(job, job.unavailable)
            return
        failure = job.failure
        if failure is None and self._job_deadline is not None and time.monotonic() > self._job_deadline:
            failure = f"not compiled after {self._timeout} s"
        if self._lands == _NOTHING:
            if failure is not None:
                self._give_up(self._lands, failure)
        else:
            self._agreed(self._lands)
            if reason := self._peers.anyone_says(_FAILED, failure):
                self._give_up(self._lands, reason)
            elif job.is_ready and self._peers.all_say(_READY, self._lands.names):
                self._land_prepared(job)
        if self._job is job and job.is_over:
            for reason in job.failed.values():
                logger.warning("the compiler process could not compile for the host as it is: %s", reason)
            job.leave_rest()
            self._drop_job()
            self._look_again()

    def _go_on_without(self, job: Job, reason: str) -> None:
        """No compiler process can be had after all: the change compiles as it lands, and other ranks wait."""
        self._say_why_not(reason)
        self._unaided = self._lands.names
        is_for_now = self._lands == _NOTHING
        self._job, self._lands = None, _NOTHING
        if is_for_now:
            job.leave_rest()
            self._look_again()

    def _look_again(self) -> None:
        """Let each unit run what there is code for now."""
        engine.set_structure(self._host, self._host.structure, self._host.phase, self._host.grafts())

    def _land_prepared(self, job: Job) -> None:
        change = self._next_change().only(self._lands.names)
        if change.target(self._host.structure).key != self._target.key:
            self._drop_job()  # the host was converted, or a seed was taken back
            return
        for reason in job.failed.values():
            logger.warning("compiling at the swap what the compiler process could not: %s", reason)
        self._lands = _NOTHING
        if (compiled := self._host.compiled) is not None and not job.is_over:
            compiled.expect_help(self._target)  # the forward that seeds blend by is still to come
        self._land(change, compiled=job.is_whole)
        self._base = self._host.structure

    def _give_up(self, change: Change, reason: str) -> None:
        """Preparing broke down. Seeds to be born are given up; what must go or stay does so without help."""
        logger.warning("%s", reason)
        if self._job is not None:
            self._job.leave_rest()
        self._drop_job()
        if change.whole:
            self._fail_act(reason)
            return
        for birth in change.births:
            self._fail(birth.seed, reason)
        rest = Change(departed=change.departed, fossils=change.fossils)
        if rest != _NOTHING:
            self._land(rest, compiled=False)

    def _drop_job_for(self, seed: Seed) -> None:
        lands = [birth.seed for birth in self._lands.births] + [fossil for fossil, _ in self._lands.fossils]
        if any(one is seed for one in lands):
            self._drop_job()

    def _drop_job(self) -> None:
        if self._job is not None:
            self._job.stop()
        self._job, self._lands = None, _NOTHING
        self._settle()

    def _settle(self) -> None:
        """Nothing is agreed on any more: the next change is chosen anew."""
        self._choice = self._unaided = self._broken = None
        self._failures = 0
        self._peers.withdraw()

    # Landing

    def _land(self, change: Change, compiled: bool) -> None:
        self._settle()
        self.is_landing = True
        try:
            self._lifecycle.commit(change, warm_up=not compiled)
        except Exception as error:  # of a compiler, of memory: no reason to end the training
            if change.whole:
                self._fail_act(f"{type(error).__name__}: {error}")
                return
            if len(change.parts) > 1:  # one of several is at fault: the others land without it
                for part in change.parts:
                    self._land(part, compiled=False)
                return
            self._fail_change(change, f"{type(error).__name__}: {error}")
            return
        finally:
            self.is_landing = False
        self._left = frozenset()
        if change.whole:
            self.follow(self._acts.pop(0))
            return
        for birth in change.births:
            pending = self._pending.pop(birth.seed.name)
            self._reporter.live_after(pending.elapsed_ms, birth.seed, prefetched=True)
        for seed, _ in change.fossils:
            del self._fossils[seed.name]

    def _fail_change(self, change: Change, reason: str) -> None:
        if change.whole:
            self._fail_act(reason)
            return
        for birth in change.births:
            self._fail(birth.seed, reason)
        for seed, _ in change.fossils:
            self._fail_fossil(seed, reason)
        for name in change.departed:
            logger.warning(
                "the graft of culled seed %r stays in the graph, at alpha 0, until the next change: %s",
                name,
                reason,
            )
        self._left |= set(change.departed)

    def _fail_act(self, reason: str) -> None:
        """The first act comes to nothing: its new seeds are given up, and the others stay as they are."""
        if not self._acts:
            return
        act = self._acts.pop(0)
        born = [course.seed for course in act.courses if course.module is not None]
        for seed in born:
            self._fail(seed, reason)
        if len(born) < len(act.courses):
            rest = [course.seed.name for course in act.courses if course.module is None]
            logger.warning(
                "what was to be done together was not: %s stay as they are: %s", ", ".join(rest), reason
            )
        if self._lands.whole:
            self._drop_job()

    def _fail_fossil(self, seed: Seed, reason: str) -> None:
        logger.warning("seed %r was not fossilized: %s", seed.name, reason)
        self._fossils.pop(seed.name, None)

    def _fail(self, seed: Seed, reason: str) -> None:
        logger.warning("seed %r did not go live: %s", seed.name, reason)
        self._pending.pop(seed.name, None)
        self._lifecycle.seeds.pop(seed.name, None)
        seed.leave(Stage.CULLED)
        self._reporter.prefetch_failed(seed, reason)
        self._drop_job_for(seed)

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
