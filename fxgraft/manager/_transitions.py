"""Transitions of existing seeds: blend, fossilize, cull, pause, one by one or together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

from fxgraft import schedules
from fxgraft.errors import StageError
from fxgraft.lifecycle.act import at_once
from fxgraft.lifecycle.act_plan import ActPlan
from fxgraft.manager._core import ManagerCore
from fxgraft.schedules import Ramp, Schedule
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.seeds.stage import after as stage_after
from fxgraft.util import validate
from fxgraft.util.interrupts import uninterruptible


@uninterruptible
def blend(
    self: ManagerCore,
    seed_or_name: Seed | str,
    *,
    to: float = 1.0,
    steps: int = 100,
    schedule: str | Schedule = "cosine",
    warmup: int = 0,
    force: bool = False,
) -> None:
    """Move the alpha of a seed from its present value to ``to`` within ``steps`` calls of `step`.

    While an isolated seed blends, and afterwards, the host's gradients do not pass through the seed: they are
    those of the output with the seed's contribution as a constant. A gradient with respect to an
    *input* (physics-informed losses, forces, gradient penalties on inputs) is then not the derivative of
    the output; this is warned of once. For such losses germinate with ``isolated=False``, and blend at
    once: a blend that is not isolated has all derivatives of its value.

    Args:
        seed_or_name: a seed, or its name, in TRAINING, BLENDING or HOLDING. From the latter two also
            downwards.
        to: the target, in [0, 1].
        steps: the number of training steps; 0: at once, the seed is in HOLDING when the call returns.
        schedule: ``"linear"``, ``"cosine"``, ``"sigmoid"``, or a monotone function from
            the share of the steps done to the share of the change, both in [0, 1].
        warmup: the number of steps before those, in which alpha stays the same.
        force: ignore the gates, also for a seed that has never run.

    Raises:
        StageError: the seed cannot be blended now, or a gate refuses it: it has not run, say.
        ValueError: the target, the number of steps or the schedule is invalid.
    """
    self._allow("blend")
    seed = self._find(seed_or_name, "blend")
    if seed.stage is Stage.DORMANT:
        return self._reporter.operation("blend", seed, disabled=True)
    course = self._acts.course(seed)
    stage_after(course.stage, "blend", seed.name)
    ramp = Ramp(course.alphas, to, steps, schedules.resolve(schedule), warmup)
    _pass_gate(self, "blend", course.judged(), force)
    report = partial(self._reporter.blend, seed, ramp.target, steps, str(schedule))
    if self._acts.open is not None:
        return self._acts.open.blend(seed, ramp, report)
    self._background.waiting.cancel_plans(seed)
    report()
    return self._lifecycle.begin_blend(seed, ramp)


@uninterruptible
def cull(self: ManagerCore, seed_or_name: Seed | str, *, wait: bool = True) -> None:
    """Remove a seed: from the graph, with its parameters, optimizer state and hooks. This is final.

    Args:
        seed_or_name: a live one, or one in preparation.
        wait: with False, too, alpha is 0 and the optimizers do not have the seed when the call returns; but
            its graft leaves the graph at a later `step`, when the code for that is compiled.

    Raises:
        StageError: the seed is a fossil, or gone.
    """
    self._allow("cull")
    seed = self._find(seed_or_name, "cull", if_cleared=True)
    if seed.stage is Stage.DORMANT:
        del self._seeds[seed.name]
        return self._reporter.operation("cull", seed, disabled=True)
    if self._acts.open is not None:
        _plan_cull(self, seed, wait)
        return None
    self._background.waiting.cancel(seed)
    if wait:
        self._lifecycle.cull(seed)
    else:
        self._lifecycle.retire(seed)
    _cool_down(self, seed)
    return None


@uninterruptible
def fossilize(self: ManagerCore, seed_or_name: Seed | str, *, wait: bool = True, force: bool = False) -> None:
    """Make a seed a permanent part of the host, at its present alpha.

    Args:
        seed_or_name: a HOLDING one; or, where it is not isolated, one in TRAINING or BLENDING, which goes to
            the target of its blend (1 without one) at once, as by ``blend(steps=0)``.
        wait: False leaves it in HOLDING until a later `step`, when the code is compiled; a `blend` before
            that cancels it.
        force: from TRAINING and BLENDING also where it is isolated; and ignore the gates, also for
            a seed that has never run.

    Raises:
        StageError: the seed is in another stage, isolated without ``force``, or a gate refuses it: it has
            not run, say.
    """
    self._allow("fossilize")
    seed = self._find(seed_or_name, "fossilize")
    if seed.stage is Stage.DORMANT:
        return self._reporter.operation("fossilize", seed, disabled=True)
    validate.boolean("force", force)
    course = self._acts.course(seed)
    ramp = at_once(course, force)
    report = None
    if ramp is not None:
        course = replace(course, stage=Stage.HOLDING, alphas=ramp.alphas(0), ramp=ramp)
        report = partial(self._reporter.blend, seed, ramp.target, 0, "linear")
    _pass_gate(self, "fossilize", course.judged(), force)
    if (act := self._acts.open) is not None:
        if ramp is not None and report is not None:
            act.blend(seed, ramp, report)
        act.fossilize(seed)
        act.waits &= wait
        return None
    if report is not None:
        report()
    if wait:
        self._background.waiting.cancel_plans(seed)
        return self._lifecycle.fossilize(seed, ramp)
    if ramp is not None:
        self._lifecycle.begin_blend(seed, ramp)
    self._background.waiting.fossils[seed.name] = seed
    return None


@uninterruptible
def cull_all(self: ManagerCore, *, wait: bool = True) -> list[str]:
    """Cull every seed that is live or in preparation, in one change; return their names, latest first.

    Use it to roll back: afterwards the host is as it was, except for its fossils.

    Args:
        wait: False takes effect at once as well, but leaves the grafts in the graph for a later
            `step`, as in `cull`.
    """
    self._allow("cull")
    if self._acts.open is not None:
        staying = [s for s in reversed(self._acts.staying().values()) if not _is_settled(s)]
        for seed in staying:
            _plan_cull(self, seed, wait)
        return [seed.name for seed in staying]
    began = time.monotonic()
    there = [s for s in reversed(self._seeds.values()) if s.is_live or s.stage is Stage.GERMINATED]
    for seed in there:
        self._background.waiting.cancel(seed)
    if wait:
        self._lifecycle.cull(*there)
    else:
        for seed in there:
            self._lifecycle.retire(seed)
    for seed in there:
        _cool_down(self, seed)
    self._reporter.rollback(there, (time.monotonic() - began) * 1e3)
    return [seed.name for seed in there]


def together(self: ManagerCore, *, wait: bool = True) -> AbstractContextManager[None]:
    """A context: all changes made inside are applied as one at its end, or none of them.

    ``germinate``, ``deepen``, ``widen``, ``fuse``, ``blend``, ``cull``, ``fossilize``, ``pause`` and
    ``resume`` are checked and planned inside; at the end the host gets one other structure, in one swap,
    compiled once. Until then nothing that runs changes: a new seed is GERMINATED, an old one in the stage
    that it was in. A call inside is checked against what those before it lead to (a new seed can be blended);
    one that raises is not planned, and the others are. A name is free for another seed only after the block.
    Channels grow and fossils are fused after all other changes, in the order of the calls.

    After an exception that leaves the block, or a change that fails (by an error of a compiler, say),
    everything is as before: the names are free again, and the new seeds are CULLED. A block inside
    of another is applied with it; an exception that leaves the inner one cancels what was planned there.

    Args:
        wait: False prepares all of it in the background, for a later `step`, and so does one
            ``wait=False`` inside. Modules are built at their calls all the same.

    Raises:
        StageError: in another thread than the one that trains, or where seeds cannot change.
    """
    self._allow("open manager.together()")
    return self._acts.block(validate.boolean("wait", wait))


def plan_together(self: ManagerCore) -> AbstractContextManager[ActPlan]:
    """A context like `together` whose changes are never made: it tells what they would change.

    ``with manager.plan_together() as plan:`` takes the same calls, ``deepen``, ``widen`` and ``fuse`` among
    them; after the block ``print(plan)`` shows the seeds, tensors, parameters and FLOPs that there would be.
    For that the changes are applied for a moment, uncompiled, checked as in `together`, and reverted: host,
    optimizers, seeds, names and random numbers are those of before, to the bit. It takes the memory that the
    changes take. Seeds that calls inside return are CULLED after the block.

    Raises:
        StageError: inside of another block, in another thread than the one that trains, or where seeds
            cannot change.
        FxGraftError: at the end of the block, where `together` would raise it.
    """
    self._allow("open manager.plan_together()")
    return self._acts.plan_block()


@uninterruptible
def pause(self: ManagerCore, seed_or_name: Seed | str) -> None:
    """Stop the ramp and the updates of a live seed.

    Args:
        seed_or_name: the seed, or its name.

    Raises:
        StageError: it is not live.
    """
    _set_paused(self, self._find(seed_or_name, "pause"), True)


@uninterruptible
def resume(self: ManagerCore, seed_or_name: Seed | str) -> None:
    """Continue the ramp and the updates of a paused seed.

    Args:
        seed_or_name: the seed, or its name.

    Raises:
        StageError: it is not live.
    """
    _set_paused(self, self._find(seed_or_name, "resume"), False)


@contextmanager
def no_cooldown(self: ManagerCore) -> Iterator[None]:
    """A context in which a cull starts no cooldown: the slot takes new seeds at once."""
    before = dict(self._memory.refuses_until)
    try:
        yield
    finally:
        self._memory.refuses_until.clear()
        self._memory.refuses_until.update(before)


def _pass_gate(manager: ManagerCore, action: str, seed: Seed, force: bool) -> None:
    validate.boolean("force", force)
    gate = manager._gates.get(action)
    if gate is None:
        return
    verdict = gate(seed)
    manager._reporter.gate(seed, action, verdict)
    if not verdict and not force:
        raise StageError(
            f"cannot {action} seed {seed.name!r}: {verdict.reason}. Meet that, or give force=True"
        )


def _set_paused(manager: ManagerCore, seed: Seed, paused: bool) -> None:
    action = "pause" if paused else "resume"
    manager._inbox.require_here(action)
    if seed.stage is Stage.DORMANT:
        return manager._reporter.operation(action, seed, disabled=True)
    stage = manager._acts.course(seed).stage
    if stage not in (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING):
        raise StageError(
            f"cannot pause or resume seed {seed.name!r}: it is {stage.name}; expected TRAINING, BLENDING or "
            f"HOLDING"
        )
    report = partial(manager._reporter.operation, action, seed)
    if manager._acts.open is not None:
        return manager._acts.open.pause(seed, paused, report)
    manager._lifecycle.pause(seed, paused)
    return report()


def _plan_cull(manager: ManagerCore, seed: Seed, wait: bool) -> None:
    assert manager._acts.open is not None
    manager._acts.open.cull(seed)
    manager._acts.open.waits &= wait
    _cool_down(manager, seed)


def _cool_down(manager: ManagerCore, seed: Seed) -> None:
    manager._memory.refuses_until[seed.slot] = manager._reporter.step + manager._cooldown


def _is_settled(seed: Seed) -> bool:
    return seed.stage in (Stage.DORMANT, Stage.FOSSILIZED)
