"""What was requested and is not carried out yet: germinations, acts, fossilizations."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from fxgraft.lifecycle.act import Act, PlannedCourse
from fxgraft.lifecycle.building import convert, slot_now, surroundings
from fxgraft.lifecycle.change import Addition, Change, Names, is_act
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager._prefetch import Pending
from fxgraft.manager.reporter import Reporter
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.telemetry.events import logger
from fxgraft_passes import Slot


class Waiting:
    """The changes that are still to be applied.

    Args:
        lifecycle: has the host and the seeds.
        reporter: reports what fails.
        withdraw: called with a seed, to cancel what is prepared for it; with None: for the first act.

    Attributes:
        pending: name -> germination.
        acts: in their order.
        fossils: name -> seed that is to become permanent.
    """

    def __init__(self, lifecycle: Lifecycle, reporter: Reporter, withdraw: Callable[[Seed | None], None]):
        self._lifecycle, self._reporter, self._withdraw = lifecycle, reporter, withdraw
        self.pending: dict[str, Pending] = {}
        self.acts: list[Act] = []
        self._newest: Act | None = None  # until a step has ended since
        self.fossils: dict[str, Seed] = {}
        self._stuck: frozenset[str] = frozenset()  # culled seeds whose grafts could not be taken out

    def __len__(self) -> int:
        return len(self.pending) + sum(course.is_addition for act in self.acts for course in act.courses)

    @property
    def words(self) -> list[str]:
        """What is to be applied, in words; without grafts that depart, which are without effect already."""
        found = [f"the germination of {name}" for name in self.pending]
        found += [words for act in self.acts for words in act.words]
        return found + [f"the fossilization of {name}" for name in self.fossils]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done."""
        return not (self.acts or self.pending or self.fossils or self._departing)

    @property
    def _departing(self) -> set[str]:
        return self._lifecycle.departing - self._stuck

    def germinate(
        self, seed: Seed, slot: Slot, build: Callable[[], nn.Module], deadline: float | None
    ) -> None:
        """Begin to build the module of ``seed``, which is in GERMINATED until it is live."""
        pending = self.pending[seed.name] = Pending(seed, slot, deadline)
        pending.run(build)

    def act(self, act: Act) -> None:
        """Queue this behind what is here already."""
        self.acts.append(act)
        self._newest = act

    # What is next

    def holds_back(self) -> bool:
        """Whether the first act was asked for in this very step, which planning it has made long enough."""
        newest, self._newest = self._newest, None
        return newest is not None and self.acts[:1] == [newest]

    @property
    def is_gathering(self) -> bool:
        """Whether what is built should wait for what was asked for with it. Acts wait for nothing."""
        return not self.acts and any(pending.is_about_to_come for pending in self.pending.values())

    def next_change(self, begun: Names | None) -> Change:
        """The first act, if there is one; else all that is ready. What was ``begun`` comes first."""
        while self.acts and (begun is None or is_act(begun)):  # else the acts come after it
            try:
                return self.acts[0].change(self._lifecycle)
            except Exception as error:  # the host was converted, say, so that it does not fit any more
                self.fail_act(f"{type(error).__name__}: {error}")
        additions = [self._addition(pending) for pending in list(self.pending.values()) if pending.is_agreed]
        fossils = [seed for seed in self.fossils.values() if seed.stage is Stage.HOLDING]
        return Change(
            additions=tuple(addition for addition in additions if addition is not None),
            departed=tuple(sorted(self._departing)),
            fossils=tuple((seed, self._lifecycle.fossil(seed, seed.alpha)) for seed in fossils),
        )

    def _addition(self, pending: Pending) -> Addition | None:
        """The addition as the host is now: it may have been converted since the module was built."""
        assert pending.module is not None
        try:
            slot = slot_now(self._lifecycle.host, pending.slot)
            convert(pending.module, surroundings(self._lifecycle.host, slot))
            return self._lifecycle.plan_addition(pending.seed, slot, pending.module)
        except Exception as error:
            self.fail(pending.seed, f"{type(error).__name__}: {error}")
            return None

    # It has been applied

    def applied(self, change: Change) -> None:
        """``change`` is carried out; the host has another structure."""
        self._stuck = frozenset()
        if change.is_act:
            self.follow(self.acts.pop(0))
            return
        for addition in change.additions:
            pending = self.pending.pop(addition.seed.name)
            self._reporter.live_after(pending.elapsed_ms, addition.seed, prefetched=True)
        for seed, _ in change.fossils:
            del self.fossils[seed.name]

    def follow(self, act: Act) -> None:
        """After ``act`` was applied: what else follows from it."""
        for course in act.courses:
            seed = course.seed
            if course.stage is Stage.CULLED:
                self._let_go(course)
                continue
            self.cancel_plans(seed)
            if course.paused is not None and seed.is_live:
                self._lifecycle.pause(seed, course.paused)
            for report in course.reports:
                report()
        for growth in act.growths:
            growth.completed()

    def _let_go(self, course: PlannedCourse) -> None:
        seed = course.seed
        if course.module is not None:  # it never came
            self._lifecycle.seeds.pop(seed.name, None)
            seed.leave(Stage.CULLED)
        elif seed.name in self._lifecycle.seeds:  # in preparation
            self.cancel(seed)
            self._lifecycle.cull(seed)
        else:
            self.cancel_plans(seed)
            self._lifecycle.mark_culled(seed)

    # It is cancelled

    def cancel_plans(self, seed: Seed) -> None:
        """Cancel what was planned for a live seed: that it becomes permanent, or its part in an act."""
        if self.fossils.pop(seed.name, None) is not None:
            self._withdraw(seed)
        self._forget(seed)

    def cancel(self, seed: Seed) -> None:
        """Forget what is in preparation for ``seed``; what is still built for it is dropped."""
        has_come = self.pending.pop(seed.name, None) is not None
        if has_come:
            self._withdraw(seed)
        if has_come or any(act.course(seed).is_addition for act in self.acts):
            self._reporter.prefetch_failed(seed, "cancelled")
        self.cancel_plans(seed)

    def _forget(self, seed: Seed) -> None:
        """Take ``seed`` out of the acts in preparation; the rest of these is applied without it."""
        for act in list(self.acts):
            if not act.forget(seed):
                continue
            if act is self.acts[0]:
                self._withdraw(None)
            if act.is_empty:
                self.acts.remove(act)

    # It fails

    def fail(self, seed: Seed, reason: str) -> None:
        """A germination has failed."""
        logger.warning("seed %r did not go live: %s", seed.name, reason)
        self.pending.pop(seed.name, None)
        self._lifecycle.seeds.pop(seed.name, None)
        seed.leave(Stage.CULLED)
        self._reporter.prefetch_failed(seed, reason)
        self._withdraw(seed)

    def fail_act(self, reason: str) -> None:
        """The first act has failed: its new seeds are culled, and the others stay as they are."""
        if not self.acts:
            return
        act = self.acts.pop(0)
        for growth in act.growths:
            logger.warning("the host's layers stay as they are: %s", reason)
            growth.failed(reason)
        born = [course.seed for course in act.courses if course.module is not None]
        for seed in born:
            self.fail(seed, reason)
        if len(born) < len(act.courses):
            rest = [course.seed.name for course in act.courses if course.module is None]
            logger.warning(
                "what was to be done together was not: %s stay as they are: %s", ", ".join(rest), reason
            )
        self._withdraw(None)

    def fail_change(self, change: Change, reason: str) -> None:
        """A change has failed."""
        if change.is_act:
            self.fail_act(reason)
            return
        for addition in change.additions:
            self.fail(addition.seed, reason)
        self._fail_fossils([seed for seed, _ in change.fossils], reason)
        for name in change.departed:
            logger.warning(
                "the graft of culled seed %r stays in the graph, at alpha 0, until the next change: %s",
                name,
                reason,
            )
        self._stuck |= set(change.departed)

    def fail_all(self, reason: str) -> None:
        """Which change is next cannot be determined: all fail."""
        for pending in self.pending.values():
            if pending.is_agreed:  # sent to the other ranks with the next step
                pending.module, pending.error = None, RuntimeError(reason)
        while self.acts:
            self.fail_act(reason)
        self._fail_fossils(list(self.fossils.values()), reason)
        self._stuck |= self._lifecycle.departing

    def _fail_fossils(self, seeds: Iterable[Seed], reason: str) -> None:
        for seed in seeds:
            logger.warning("seed %r was not fossilized: %s", seed.name, reason)
            self.fossils.pop(seed.name, None)
