"""An act: what is to become of several seeds, planned first, so that it is applied as one change.

While an act is planned nothing that runs changes. Each call is checked against what the calls before it
lead to: a seed that is to be added can be blended, and what is to be culled cannot.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from fxgraft.errors import SlotError, StageError
from fxgraft.host.host import Host
from fxgraft.lifecycle.building import convert, slot_now, surroundings
from fxgraft.lifecycle.change import Addition, Change, Growing
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.schedules import Ramp, linear
from fxgraft.seeds.seed import Seed, amend
from fxgraft.seeds.stage import Stage, after
from fxgraft_passes import Graft, Slot
from fxgraft_passes.graft import alpha_shape


@dataclass(frozen=True)
class PlannedCourse:
    """The planned changes of one seed.

    Attributes:
        seed: the seed.
        stage: where it ends.
        alphas: its share (in each channel) at that end, as far as the act itself moves it.
        slot, module: of a seed to be added; None of one that is there.
        graft: of that one, as it would be now.
        ramp: the blend that it begins, or None.
        from_now: whether that begins where alpha is when the act is applied.
        fossil: whether it becomes permanent.
        paused: whether it is paused then; None: as before.
        reports: called when the act has been applied.
        like: of a seed to be added, see `Addition`.
    """

    seed: Seed
    stage: Stage
    alphas: tuple[float, ...]
    slot: Slot | None = None
    module: nn.Module | None = None
    graft: Graft | None = None
    ramp: Ramp | None = None
    from_now: bool = True
    fossil: bool = False
    paused: bool | None = None
    reports: tuple[Callable[[], None], ...] = ()
    like: Mapping[nn.Parameter, nn.Parameter] = field(default_factory=dict)

    @property
    def is_addition(self) -> bool:
        """Whether the seed is added by the act, and not culled in it."""
        return self.module is not None and self.stage is not Stage.CULLED

    @property
    def words(self) -> str:
        """What becomes of the seed, in words."""
        name = self.seed.name
        if self.stage is Stage.CULLED:
            return f"the end of {name}"
        if self.module is not None:
            return f"the germination of {name}"
        if self.fossil:
            return f"the fossilization of {name}"
        if self.ramp is not None:
            return f"the blend of {name}"
        return f"the {'pause' if self.paused else 'resumption'} of {name}"

    @property
    def target(self) -> float:
        """Where alpha goes: to 1 if nothing else was asked for."""
        ramp = self.ramp or self.seed.ramp
        return 1.0 if ramp is None else ramp.target

    def judged(self) -> Seed:
        """The seed as it will be, for gates: a copy of the record."""
        seed = copy.copy(self.seed)
        amend(seed, stage=self.stage, alpha=sum(self.alphas) / len(self.alphas), ramp=self.ramp or seed.ramp)
        if self.graft is not None:
            seed.take(self.graft)
        return seed


@dataclass(frozen=True)
class PlannedGrowth:
    """What makes the host's own layers larger, in an act.

    Attributes:
        growing: carries it out.
        completed: called when the act has been applied.
        failed: called with the reason where it is not applied.
    """

    growing: Growing
    completed: Callable[[], None]
    failed: Callable[[str], None]


Planned = tuple[Mapping[Seed, PlannedCourse], tuple[PlannedGrowth, ...]]
"""What an act has at some moment."""


class Act:
    """The courses of an act.

    Attributes:
        waits: whether it is applied when it is closed; else at a later step, prepared in the background.
        thread: the one that plans it.
        growths: what makes the host's own layers larger, behind all else of the act.
    """

    def __init__(self, waits: bool = True):
        self.waits = waits
        self.thread = threading.current_thread()
        self._courses: dict[Seed, PlannedCourse] = {}
        self.growths: list[PlannedGrowth] = []

    @property
    def words(self) -> list[str]:
        """What it does, in words."""
        moved = [c for c in self.courses if c.module is None or c.is_addition]  # none that comes and goes
        return [*(c.words for c in moved), *(growth.growing.words for growth in self.growths)]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self._courses and not self.growths

    @property
    def courses(self) -> list[PlannedCourse]:
        """In the order in which the seeds were first named."""
        return list(self._courses.values())

    def course(self, seed: Seed) -> PlannedCourse:
        """That of ``seed``, as far as it is planned."""
        known = self._courses.get(seed)
        return known or PlannedCourse(seed, seed.stage, seed.alphas)

    def __contains__(self, seed: Seed) -> bool:
        return seed in self._courses

    def culls(self, seed: Seed) -> bool:
        """Whether ``seed`` will be gone."""
        return self.course(seed).stage is Stage.CULLED

    # Planning

    def germinate(self, addition: Addition, report: Callable[[], None]) -> None:
        """Plan that a seed goes live."""
        seed, slot = addition.seed, addition.placement.slot
        channels = math.prod(alpha_shape(seed.spec.mode, slot.shape))
        stage = after(seed.stage, "go live", seed.name)
        alphas = (0.0,) * channels
        module, graft = addition.graft.module, addition.graft
        self._courses[seed] = PlannedCourse(
            seed, stage, alphas, slot, module, graft, reports=(report,), like=addition.like
        )

    def blend(self, seed: Seed, ramp: Ramp, report: Callable[[], None]) -> None:
        """Plan a blend along ``ramp``, in place of an earlier one of the act."""
        course = self.course(seed)
        stage = after(course.stage, "blend", seed.name)
        alphas = course.alphas
        if not ramp.length:
            stage, alphas = after(stage, "reach", seed.name), ramp.alphas(0)
        from_now = course.from_now and (course.ramp is None or course.ramp.length > 0)
        self._plan(course, report, stage=stage, alphas=alphas, ramp=ramp, from_now=from_now)

    def cull(self, seed: Seed) -> None:
        """Cull a seed; one that is only planned is not added."""
        course = self.course(seed)
        self._courses[seed] = replace(course, stage=after(course.stage, "cull", seed.name), ramp=None)

    def fossilize(self, seed: Seed) -> None:
        """Plan that a seed becomes permanent, which will be HOLDING then."""
        course = self.course(seed)
        self._plan(course, None, stage=after(course.stage, "fossilize", seed.name), fossil=True)

    def pause(self, seed: Seed, paused: bool, report: Callable[[], None]) -> None:
        """Pause or resume a seed."""
        self._plan(self.course(seed), report, paused=paused)

    def forget(self, seed: Seed) -> bool:
        """Remove ``seed`` from the act; return whether it had a part in it."""
        return self._courses.pop(seed, None) is not None

    def _plan(self, course: PlannedCourse, report: Callable[[], None] | None, **changes: object) -> None:
        reports = course.reports if report is None else (*course.reports, report)
        self._courses[course.seed] = replace(course, reports=reports, **changes)  # type: ignore[arg-type]

    def kept(self) -> Planned:
        """What is planned now, for `take_back`."""
        return dict(self._courses), tuple(self.growths)

    def take_back(self, kept: Planned, reason: str) -> list[Seed]:
        """Restore the act; return the seeds that are not added any more. ``reason`` is told to growths."""
        courses, growths = kept
        dropped = [c.seed for c in self.courses if c.module is not None and c.seed not in courses]
        for growth in self.growths[len(growths) :]:
            growth.failed(reason)
        self._courses, self.growths = dict(courses), list(growths)
        return dropped

    # Applier

    def change(self, lifecycle: Lifecycle) -> Change:
        """All of it, as it fits the host now, which may have been converted since it was planned."""
        additions, ramps, fossils = [], [], []
        for course in self.courses:
            seed = course.seed
            if course.is_addition:
                additions.append(_addition_of(lifecycle, course))
            if course.ramp is not None:
                moves_on = course.module is None and course.from_now
                ramps.append((seed, replace(course.ramp, starts=seed.alphas) if moves_on else course.ramp))
            if course.fossil:
                alpha = course.ramp.target if course.ramp is not None else seed.alpha
                fossils.append((seed, lifecycle.fossil(seed, alpha, course.module)))
        removals = [c.seed for c in self.courses if c.stage is Stage.CULLED and c.seed.module is not None]
        growths = tuple(planned.growing for planned in self.growths)
        return Change(
            tuple(additions), tuple(removals), (), tuple(fossils), tuple(ramps), is_act=True, growths=growths
        )


def at_once(course: PlannedCourse, force: bool) -> Ramp | None:
    """The ramp that takes a seed to its target at once, so that it can be fossilized; None where it is there.

    Raises:
        StageError: it cannot be fossilized from its stage; or it is isolated, and not ``force``.
    """
    seed = course.seed
    if course.stage not in (Stage.TRAINING, Stage.BLENDING):
        after(course.stage, "fossilize", seed.name, seed.progress)
        return None
    if seed.spec.isolated and not force:
        hint = f"isolated, so the host does not count on it; force=True takes it to alpha {course.target:g}"
        after(course.stage, "fossilize", seed.name, f"{seed.progress}; {hint}" if seed.progress else hint)
    return Ramp(course.alphas, course.target, 0, linear)


def refuse_threads(act: Act) -> None:
    """Raise `StageError` in another thread than the one that plans ``act``."""
    if act.thread is not threading.current_thread():
        raise StageError(
            f"thread {act.thread.name!r} is inside manager.together(): send a command by manager.submit(), "
            f"which is carried out at the end of the next step"
        )


def _addition_of(lifecycle: Lifecycle, course: PlannedCourse) -> Addition:
    assert course.module is not None
    assert course.slot is not None
    slot = slot_now(lifecycle.host, course.slot)
    if course.seed.spec.call is None:  # a block has the dtypes of that which it is a copy of
        convert(course.module, surroundings(lifecycle.host, slot))
    else:
        _refuse_other_sizes(lifecycle.host, course.seed, course.module)
    return replace(lifecycle.plan_addition(course.seed, slot, course.module), like=course.like)


def _refuse_other_sizes(host: Host, seed: Seed, block: nn.Module) -> None:
    """Raise `SlotError` for a block whose original has grown wider since it was copied."""
    original = host.regions.get(seed.config.get("like", ""))
    if original is None:
        return
    for (name, ours), (_, now) in zip(
        block.named_parameters(), original.module.named_parameters(), strict=False
    ):
        if ours.shape != now.shape:
            raise SlotError(
                f"block {seed.name!r}: expected {name} of shape {tuple(now.shape)}, as {original.name!r} "
                f"has it now; it was copied before that grew wider, and has {tuple(ours.shape)}. Deepen again"
            )
