"""`SeedManager.together`: the calls inside of a block are planned, and are applied as one change at its end.

    with manager.together():          opens an act
        manager.germinate(...)        each call is checked, and planned
        manager.cull(...)
                                      one structure, one swap, one compilation: whole, or nothing of it

A block inside of another is a part of it. An exception that leaves a block reverts: an inner block what was
planned inside of it, the outermost everything.

`SeedManager.plan_together` opens an act that is applied for a moment only, to tell what it would change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from fxgraft.errors import StageError
from fxgraft.lifecycle.act import Act, Planned, PlannedCourse, refuse_threads
from fxgraft.lifecycle.act_plan import ActPlan, plan_act
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager._background import Background
from fxgraft.manager._saver import ManagerState
from fxgraft.seeds.names import SeedNames
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.util.interrupts import uninterruptible


class Acts:
    """Opens and applies the acts of a manager.

    Args:
        lifecycle: carries changes out.
        background: applies the acts that are not waited for.
        memory: of the manager; is restored with what is reverted.

    Attributes:
        open: the act that is planned now, or None.
    """

    def __init__(self, lifecycle: Lifecycle, background: Background, memory: ManagerState):
        self._lifecycle, self._background, self._memory = lifecycle, background, memory
        self.open: Act | None = None

    def block(self, wait: bool) -> TogetherBlock:
        """What ``with`` is given."""
        return TogetherBlock(self, wait)

    def plan_block(self) -> PlanBlock:
        """What ``with`` is given for an act that is only planned."""
        return PlanBlock(self)

    def course(self, seed: Seed) -> PlannedCourse:
        """What is planned of ``seed``; without an act, where it is."""
        return (self.open or Act()).course(seed)

    def staying(self) -> dict[str, Seed]:
        """The seeds that are not to be culled, in their order."""
        act = self.open
        return {n: s for n, s in self._lifecycle.seeds.items() if act is None or not act.culls(s)}

    def refuse(self, action: str) -> None:
        """Raise `StageError` inside of a block, and in another thread than that of one."""
        if self.open is not None:
            raise StageError(f"cannot {action} inside manager.together(): do it afterwards")

    def refuse_threads(self) -> None:
        """Raise `StageError` in another thread than that of a block."""
        if self.open is not None:
            refuse_threads(self.open)

    def take_back(self, kept: ActSnapshot, reason: str = "it was taken back") -> None:
        """Restore the state of `keep`."""
        act, lifecycle, memory = self.open, self._lifecycle, self._memory
        assert act is not None
        dropped = act.take_back(kept.planned, reason)
        lifecycle.reorder(kept.seeds)
        memory.names = SeedNames(kept.names)
        memory.refuses_until.clear()
        memory.refuses_until.update(kept.refuses_until)
        act.waits = kept.waits
        for seed in dropped:
            seed.leave(Stage.CULLED)

    def keep(self) -> ActSnapshot:
        """What `take_back` needs."""
        act, memory = self.open, self._memory
        assert act is not None
        return ActSnapshot(
            act.kept(),
            dict(self._lifecycle.seeds),
            dict(memory.names.next_numbers),
            dict(memory.refuses_until),
            act.waits,
        )

    def plan(self) -> dict[str, Any]:
        """What the act would change: the attributes of an `ActPlan`."""
        assert self.open is not None
        return plan_act(self._lifecycle, self.open)

    def apply(self) -> None:
        """Carry the act out, now or in the background."""
        act = self.open
        assert act is not None
        if act.is_empty:
            return
        if not act.waits:
            self._background.waiting.act(act)
            return
        self._lifecycle.commit(act.change(self._lifecycle))
        self._background.waiting.follow(act)


@dataclass(frozen=True)
class ActSnapshot:
    """What there was at some moment of a block.

    Attributes:
        planned: what the act had.
        seeds: those of the manager, in their order.
        names: the numbers of the names that come next.
        refuses_until: as in `ManagerState`.
        waits: whether the act waited.
    """

    planned: Planned
    seeds: Mapping[str, Seed]
    names: Mapping[str, int]
    refuses_until: Mapping[str, int]
    waits: bool


class TogetherBlock:
    """One ``with`` block."""

    def __init__(self, acts: Acts, wait: bool):
        self._acts, self._wait = acts, wait
        self._is_outermost = False

    @uninterruptible
    def __enter__(self) -> None:
        acts = self._acts
        if acts.open is None:
            acts.open, self._is_outermost = Act(), True
        acts.open.waits &= self._wait
        self._kept = acts.keep()

    @uninterruptible
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        acts = self._acts
        try:
            if kind is not None:
                acts.take_back(self._kept)
            elif self._is_outermost:
                try:
                    acts.apply()
                except BaseException:
                    acts.take_back(self._kept)
                    raise
        finally:
            if self._is_outermost:
                acts.open = None


class PlanBlock:
    """One ``with`` block whose calls are planned, and never applied."""

    def __init__(self, acts: Acts):
        self._acts, self._plan = acts, ActPlan()

    @uninterruptible
    def __enter__(self) -> ActPlan:
        self._acts.refuse("open manager.plan_together()")  # it may have been made before another was opened
        self._acts.open = Act()
        self._kept = self._acts.keep()
        return self._plan

    @uninterruptible
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        acts = self._acts
        try:
            if kind is None:
                vars(self._plan).update(acts.plan())
        finally:
            acts.take_back(self._kept, "it was only planned")
            acts.open = None
