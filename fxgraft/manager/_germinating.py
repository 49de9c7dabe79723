"""A new seed: `germinate` inserts it, `plan` reports what that would change."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fxgraft.errors import SlotError
from fxgraft.lifecycle import building, order
from fxgraft.lifecycle.building import BlueprintLike
from fxgraft.lifecycle.plan import GerminationPlan
from fxgraft.lifecycle.plan import plan as plan_seed
from fxgraft.manager._core import ManagerCore
from fxgraft.optimizers.requests import Groups
from fxgraft.seeds import streams
from fxgraft.seeds.config import SeedConfig
from fxgraft.seeds.seed import Seed, amend
from fxgraft.seeds.stage import after as stage_after
from fxgraft.telemetry import logger
from fxgraft.util.interrupts import interruptible, uninterruptible
from fxgraft_passes import GraftSpec, Objective, Slot


@uninterruptible
def germinate(
    self: ManagerCore,
    slot_name: str,
    blueprint: BlueprintLike,
    *,
    source: str | None = None,
    name: str | None = None,
    mode: str | None = None,
    objective: str | Objective = "trust",
    isolated: bool = True,
    wait: bool = True,
    hyper: Mapping[str, Any] | None = None,
    optimizer: Optimizer | int | None = None,
    groups: Groups | None = None,
    before: Seed | str | None = None,
    after: Seed | str | None = None,
    **config: Any,
) -> Seed:
    """Insert a new seed at a slot.

    It is in TRAINING when the call returns, or, with ``wait=False``, in GERMINATED: its module is
    built in another thread, and a later `step` inserts it.

    Args:
        slot_name: one of ``host.slots``; or an edge ``"relu->fc2"``, a module's input ``"->fc2"``, an
            element ``"lstm[0]"``, all calls of a module ``"fc@*"`` (see `fxgraft.slots.places`).
        blueprint: a registered name, an ``nn.Module``, or a factory ``Slot -> nn.Module``.
        source: an earlier slot, whose value the seed reads instead of that of its own slot: a branch
            parallel to what is between them. The seed's output has the shape of the slot, and its input that
            of the source. The two slots may be in different regions, if the regions up to the one
            that contains both can run as one graph; they do as long as the branch exists.
        name: the name of the seed; by default a new one that says what it is made from and where it is
            (``"mlp_at_blocks_0_relu"``).
        mode: ``"residual"`` (the default) adds the seed's output, ``"convex"`` replaces the
            host's value by it, ``"gated"`` adds it scaled by a gate that the seed learns,
            ``"channelwise"`` adds it with an alpha for each channel.
        objective: what the seed learns from in isolation: ``"trust"``, ``"shadow"``,
            ``"straight_through"``, or an `fxgraft.Objective` with a radius of its own.
        isolated: whether the host's gradients, and derivatives of any order, have no contribution through
            the seed. With False, a seed in TRAINING passes to the host the gradient that it learns from,
            which is not a derivative of the output: blend at once.
        wait: whether to wait until the seed is live.
        hyper: settings of the optimizer for this seed only (``{"lr": 1e-3, "weight_decay": 0.0}``). It gets
            groups of its own: a copy of each group that its parameters would join, with these settings.
            Its lr follows the schedule of that group in proportion to the initial lr there, or to the
            peak of a schedule that has one (OneCycleLR, CyclicLR). By default it joins existing groups.
        optimizer: the optimizer for the seed: one of the manager's, or its index among them. By default
            each parameter joins the optimizer that has the layers around the slot.
        groups: the group that all parameters of the seed join: its index in ``optimizer.param_groups``, or
            the group itself (``optimizer.param_groups[1]``); or a function ``(name, parameter) -> index,
            group or None``, which is called for each parameter, with its name in the seed
            (``"up.weight"``), possibly several times; None means the default. By default, the group that
            has the parameters of the same kind around the slot. For a blueprint with an option ``groups``
            of its own, a number is that option (``"norm", groups=4``).
        before: a seed at this slot, or its name; the new one is inserted directly before it. Seeds at one
            slot compose in the order in which they were germinated, unless this or ``after`` is given.
        after: a seed at this slot, or its name; the new one is inserted directly behind it; with ``before``:
            anywhere behind it.
        **config: passed to the blueprint's factory.

    Raises:
        SlotError: there is no such slot, or no branch from that source to it.
        BlueprintError: the blueprint is unknown, fails, or does not fit the slot.
        ValueError: for an unknown mode, objective or hyper-parameter, an invalid name, an
            optimizer or a group that is not there, or a ``hyper`` where an optimizer has a scheduler that
            is not in ``schedulers``.
        StageError: the name is taken, or there are no such seeds as ``before`` and ``after`` name there.
    """
    wanted = SeedConfig(
        slot=slot_name,
        blueprint=blueprint,
        source=source,
        name=name,
        mode=mode,
        objective=objective,
        isolated=isolated,
        hyper=hyper,
        optimizer=optimizer,
        groups=groups,
        before=_name_of(self, before),
        after=_name_of(self, after),
        config=config,
    )
    self._allow("germinate")
    self._refuse_inference_mode("germinate")
    return _germinate(self, wanted, wait)


def plan(
    self: ManagerCore,
    slot_name: str,
    blueprint: BlueprintLike,
    *,
    source: str | None = None,
    name: str | None = None,
    mode: str | None = None,
    objective: str | Objective = "trust",
    isolated: bool = True,
    hyper: Mapping[str, Any] | None = None,
    optimizer: Optimizer | int | None = None,
    groups: Groups | None = None,
    before: Seed | str | None = None,
    after: Seed | str | None = None,
    **config: Any,
) -> GerminationPlan:
    """A plan of what `germinate` with these arguments would change. Changes nothing, and needs no data.

    The seed is built on the ``meta`` device; the host may be there too. What depends on the values of weights
    is not checked: whether they are finite, and whether they are shared with the host.

    Args:
        slot_name: as of `germinate`.
        blueprint: a registered name, an ``nn.Module``, or a factory ``Slot -> nn.Module``.
        source: an earlier slot, whose value the seed reads. Default None: that of its own slot.
        name: the name of the seed. Default None: a generated one.
        mode: ``"residual"``, ``"convex"``, ``"gated"`` or ``"channelwise"``. Default None: ``"residual"``.
        objective: what the seed learns from in isolation. Default ``"trust"``.
        isolated: whether it trains in isolation. Default True.
        hyper: settings of the optimizer for this seed only. Default None: it joins existing groups.
        optimizer: one of the manager's, or its index. Default None: that of the layers around the slot.
        groups: the group that its parameters join, as of `germinate`. Default None.
        before: a seed at this slot, which the new one is placed in front of. Default None.
        after: a seed at this slot, which the new one is placed behind. Default None: behind all.
        **config: options of the blueprint.

    Raises:
        SlotError, BlueprintError, ValueError: as `germinate` would.
    """
    wanted = SeedConfig(
        slot=slot_name,
        blueprint=blueprint,
        source=source,
        name=name,
        mode=mode,
        objective=objective,
        isolated=isolated,
        hyper=hyper,
        optimizer=optimizer,
        groups=groups,
        before=_name_of(self, before),
        after=_name_of(self, after),
        config=config,
    )
    with torch.inference_mode(False):  # whose tensors have no versions: what writes in place would not show
        return _plan(self, wanted)


def _germinate(manager: ManagerCore, wanted: SeedConfig, wait: bool) -> Seed:
    slot = manager.host.site(wanted.slot, wanted.source)
    _refuse_cooldown(manager, slot.name)
    follower = order.place(manager.host, manager._acts.staying(), slot, wanted.before, wanted.after)
    building.refuse_unknown(wanted.blueprint, slot)
    wanted = _for_the_blueprint(wanted)
    spec = wanted.spec(slot)
    seed = _record(manager._name(wanted.name, wanted.blueprint, slot.name), wanted, slot, spec)
    if not manager.enabled:
        manager._lifecycle.insert_seed(seed, order.behind(manager._seeds, seed.name, follower))
        manager._reporter.operation("germinate", seed, disabled=True)
        return seed
    manager._lifecycle.registry.request(seed, wanted.hyper, wanted.optimizer, wanted.groups)
    amend(seed, source=slot.names[1])
    _warn_of_isolated_convex(seed)
    amend(seed, stage=stage_after(seed.stage, "germinate", seed.name))
    key = streams.key_of(manager._memory.run_seed, seed.name)
    around = building.surroundings(manager.host, slot)
    admit = partial(manager._lifecycle.admit, seed, tries=wait)
    build = partial(building.build, wanted.blueprint, slot, spec.mode, around, key, wanted.config, admit)
    _make_live(manager, seed, slot, follower, build, wait)
    return seed


def _plan(manager: ManagerCore, wanted: SeedConfig) -> GerminationPlan:
    slot = manager.host.site(wanted.slot, wanted.source)
    label, names = building.label(wanted.blueprint), manager._memory.names
    name = wanted.name or names.preview(label, slot.name, manager._taken())
    follower = order.place(manager.host, manager._seeds, slot, wanted.before, wanted.after)
    behind = order.behind(manager._seeds, name, follower)
    wanted = _for_the_blueprint(wanted)
    seed = _record(name, wanted, slot, wanted.spec(slot))
    registry = manager._lifecycle.registry
    registry.request(seed, wanted.hyper, wanted.optimizer, wanted.groups)
    preview = partial(registry.preview, seed)
    return plan_seed(manager.host, slot, seed.spec, wanted.blueprint, name, wanted.config, behind, preview)


def _record(name: str, wanted: SeedConfig, slot: Slot, spec: GraftSpec) -> Seed:
    """The record of a seed that is wanted."""
    label, registered = building.label(wanted.blueprint), isinstance(wanted.blueprint, str)
    return Seed(name, slot.name, label, spec, config=wanted.config, registered=registered)


def _name_of(manager: ManagerCore, seed: Seed | str | None) -> str | None:
    if seed is not None:
        manager._refuse_cleared("germinate beside a seed")
    return manager._find(seed, "germinate beside a seed").name if isinstance(seed, Seed) else seed


def _for_the_blueprint(wanted: SeedConfig) -> SeedConfig:
    """A number of groups (of a convolution, a norm) is for the blueprint that has such an option."""
    if isinstance(wanted.groups, int) and building.has_option(wanted.blueprint, "groups"):
        return replace(wanted, groups=None, config={**wanted.config, "groups": wanted.groups})
    return wanted


def _make_live(
    manager: ManagerCore,
    seed: Seed,
    slot: Slot,
    follower: str | None,
    build: Callable[[], nn.Module],
    wait: bool,
) -> None:
    """Now, with the act that is open, or in the background."""
    if manager._acts.open is None and not wait:
        manager._lifecycle.insert_seed(seed, order.behind(manager._seeds, seed.name, follower))
        manager._background.germinate(seed, slot, build)
        manager._on_stage(seed)
        return
    began = time.monotonic()
    with interruptible():
        module = build()
    if (act := manager._acts.open) is None:
        manager._lifecycle.go_live(seed, slot, module, follower)
        manager._reporter.live_after((time.monotonic() - began) * 1e3, seed, prefetched=False)
        return
    addition = manager._lifecycle.plan_addition(seed, slot, module, follower)
    act.germinate(addition, partial(manager._report_germination, seed, began, act))
    manager._lifecycle.insert_seed(seed, addition.before)
    act.waits &= wait


def _refuse_cooldown(manager: ManagerCore, slot: str) -> None:
    left = manager._memory.refuses_until.get(slot, 0) - manager._reporter.step
    if manager.enabled and left > 0:
        raise SlotError(
            f"slot {slot!r} cools down after a cull, for {left} more steps: germinate then, or choose "
            f"another slot, or SeedManager(..., cooldown=0)"
        )


def _warn_of_isolated_convex(seed: Seed) -> None:
    if seed.spec.mode == "convex" and seed.spec.isolated:
        logger.warning(
            "seed %r: an isolated convex seed cuts the host before slot %r off from gradients as "
            "alpha grows; mode='residual' does not",
            seed.name,
            seed.slot,
        )
