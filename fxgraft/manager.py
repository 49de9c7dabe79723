"""The manager: runs the lives of seeds on a host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft import nursery, schedules, streams
from fxgraft.errors import SlotError, StageError
from fxgraft.gradients import SeedGradients
from fxgraft.host import Host
from fxgraft.isolation import Violation
from fxgraft.monitor import DEFAULT_INTERVAL, IsolationMonitor
from fxgraft.names import SeedNames, check_name
from fxgraft.registry import SeedParameterRegistry
from fxgraft.schedules import Ramp, Schedule
from fxgraft.seed import Seed
from fxgraft.shadow import shadow_pass
from fxgraft.stage import Stage, after
from fxgraft.structure import Placement, Structure, kind_of
from fxgraft.swap import follow_stages, phase_for, swap
from fxgraft.telemetry import Event, Sink, Sinks, logger
from fxgraft_passes import Graft, GraftSpec, Phase, Slot

ENABLED_VARIABLE = "FXGRAFT_DYNAMIC_SEEDS"
BlueprintLike = str | nn.Module | Callable[..., nn.Module]


class SeedManager:
    """Germinates, blends, culls and fossilizes seeds on a host.

    Every method that changes the host does so as a whole or not at all.

    Args:
        host: a `Host`, or the ``DistributedDataParallel`` around one.
        optimizer: what trains the seeds: None, one optimizer, or several.
        schedulers: learning-rate schedulers to keep in step with groups that seeds add.
        enabled: False makes every germination a recorded no-op. By default the environment
            variable ``FXGRAFT_DYNAMIC_SEEDS`` decides (``0`` disables), and otherwise True.
        strict: raise `IsolationError` out of the training step where isolation is violated.
        sinks: callables that are given every `fxgraft.telemetry.Event`.
        check_every: training steps between two isolation checks, beside the one after each change;
            0 for none. A check costs two passes of the model.
    """

    def __init__(
        self,
        host: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        schedulers: Sequence[Any] = (),
        enabled: bool | None = None,
        strict: bool = False,
        sinks: Sequence[Sink] = (),
        check_every: int = DEFAULT_INTERVAL,
    ):
        inner = getattr(host, "module", None) if not isinstance(host, Host) else host
        if not isinstance(inner, Host):
            raise TypeError(
                f"host: expected a fxgraft.Host (from fxgraft.trace) or DistributedDataParallel "
                f"around one; got {type(host).__name__}"
            )
        if optimizer is None:
            optimizer = ()
        self.host = inner
        self.schedulers = tuple(schedulers)
        self.strict = strict
        self.enabled = _enabled_by_environment() if enabled is None else enabled
        optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
        self.registry = SeedParameterRegistry(optimizers)
        self._gradients = SeedGradients(lambda seed: self._emit("gradients_dropped", seed))
        self._sinks = Sinks(sinks)
        self.monitor = IsolationMonitor(self.host, check_every, strict, self._report_violations)
        self._seeds: dict[str, Seed] = {}
        self._names = SeedNames()
        self._run_seed = torch.initial_seed()
        self._step = 0

    # What there is

    @property
    def seeds(self) -> Mapping[str, Seed]:
        """Name -> seed: those that live, and those that became part of the host."""
        return MappingProxyType(self._seeds)

    def seed_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of live seeds."""
        for seed in self._seeds.values():
            yield from self.registry.parameters(seed.name)

    # The lifecycle

    def germinate(
        self,
        slot_name: str,
        blueprint: BlueprintLike,
        *,
        source: str | None = None,
        name: str | None = None,
        mode: str | None = None,
        objective: str = "trust",
        isolated: bool = True,
        wait: bool = True,
        **config: Any,
    ) -> Seed:
        """Splice a new seed in behind a slot; it is in TRAINING when the call returns.

        Args:
            slot_name: one of ``host.slots``.
            blueprint: a registered name, an ``nn.Module``, or a factory ``Slot -> nn.Module``.
            source: not supported yet.
            name: the seed's; a new one is made by default.
            mode: ``"residual"`` (the default) adds the seed's output, ``"convex"`` replaces the
                host's value by it.
            objective: what the seed learns from in isolation; see ``fxgraft_passes.objectives``.
            isolated: whether nothing may reach a host gradient through the seed.
            wait: must be True for now.
            **config: passed to the blueprint's factory.

        Raises:
            SlotError: there is no such slot.
            BlueprintError: the blueprint is unknown, fails, or does not fit the slot.
            ValueError: for an unknown mode or objective, or a name that cannot be one.
            StageError: the name is taken.
        """
        if source is not None:
            raise SlotError(f"source={source!r}: branches between two slots are not supported yet")
        if not wait:
            raise StageError("wait=False: germination in the background is not supported yet")
        slot = self.host.slot(slot_name)
        spec = GraftSpec(mode or "residual", objective, isolated=isolated, copy=slot.copy)
        seed = Seed(self._name(name, blueprint), slot_name, nursery.label(blueprint), spec)
        if not self.enabled:
            self._seeds[seed.name] = seed
            self._record_noop("germinate", seed)
            return seed
        if spec.mode == "convex" and isolated:
            logger.warning(
                "seed %r: an isolated convex seed starves the host before slot %r of gradients as "
                "alpha grows; mode='residual' does not",
                seed.name,
                slot_name,
            )
        seed.stage = after(seed.stage, "germinate", seed.name)
        key = streams.key_of(self._run_seed, seed.name)
        module = nursery.grow(blueprint, slot, spec.mode, self._around(slot), key, config)
        self._go_live(seed, slot, module)
        return seed

    def _go_live(self, seed: Seed, slot: Slot, module: nn.Module) -> None:
        """From here on every way of preparing a seed is the same."""
        around = self._around(slot)
        graft = Graft(module, dtype=around.dtype, device=around.device).train(around.training)
        placement = Placement(seed.name, slot, seed.spec, kind_of(module))
        with ExitStack() as undo:
            self.registry.claim(seed.name, module, self.host.owns)
            undo.callback(self.registry.disown, seed.name)
            self._seeds[seed.name] = seed
            undo.callback(self._seeds.pop, seed.name)
            seed._graft = graft
            undo.callback(setattr, seed, "_graft", None)
            undo.callback(seed.enter, seed.stage)
            seed.enter(after(seed.stage, "go live", seed.name))
            self._swap(undo, self.host.structure.with_placement(placement), {seed.name: graft})
            undo.callback(self.registry.leave, list(module.parameters()))
            self.registry.join(module, f"_seeds.{seed.name}.module")
            self._gradients.watch(seed.name, list(module.parameters()))
            undo.pop_all()
        self._announce(seed)

    def blend(
        self,
        seed: Seed | str,
        *,
        to: float = 1.0,
        steps: int = 100,
        schedule: str | Schedule = "cosine",
    ) -> None:
        """Move a seed's alpha to ``to`` within ``steps`` calls of `step`, from where it is now.

        Args:
            seed: from TRAINING, or again from BLENDING or HOLDING, also downwards.
            to: the target, in [0, 1].
            steps: how many training steps it takes, at least 1.
            schedule: ``"linear"``, ``"cosine"``, ``"sigmoid"``, or a monotone callable that takes
                the share of the steps done to the share of the way, both in [0, 1].

        Raises:
            StageError: the seed cannot be blended now.
            ValueError: for a target, number of steps or schedule that cannot be.
        """
        seed = self._find(seed)
        if seed.stage is Stage.DORMANT:
            return self._record_noop("blend", seed)
        stage = after(seed.stage, "blend", seed.name)
        ramp = Ramp(seed.alpha, float(to), steps, schedules.resolve(schedule))
        seed._ramp, seed._ramp_step = ramp, 0
        seed.enter(stage)
        follow_stages(self.host, self._seeds.values())
        self._emit("blend_config", seed.name, target=ramp.target, steps=steps, schedule=str(schedule))
        return self._announce(seed)

    def cull(self, seed: Seed | str, *, wait: bool = True) -> None:
        """Take a seed out: graph, parameters, optimizer state and hooks. It cannot come back.

        Raises:
            StageError: the seed is a fossil, or gone.
        """
        seed = self._find(seed)
        if seed.stage is Stage.DORMANT:
            del self._seeds[seed.name]
            return self._record_noop("cull", seed)
        stage = after(seed.stage, "cull", seed.name)
        with ExitStack() as undo:
            del self._seeds[seed.name]
            undo.callback(self._seeds.__setitem__, seed.name, seed)
            self._swap(undo, self.host.structure.without(seed.name))
            undo.pop_all()
        self._gradients.unwatch(seed.name)
        self.registry.leave(self.registry.parameters(seed.name))
        self.registry.disown(seed.name)
        seed._graft = None
        seed.alpha = 0.0
        seed.stage = stage
        return self._announce(seed)

    def fossilize(self, seed: Seed | str) -> None:
        """Make a HOLDING seed a plain part of the host, at the alpha that it holds.

        Raises:
            StageError: the seed is not HOLDING.
        """
        seed = self._find(seed)
        if seed.stage is Stage.DORMANT:
            return self._record_noop("fossilize", seed)
        stage = after(seed.stage, "fossilize", seed.name)
        assert seed.module is not None
        slot = self.host.slots[seed.slot]
        spec = GraftSpec(seed.spec.mode, seed.spec.objective, seed.spec.radius, False, slot.copy, seed.alpha)
        placement = Placement(seed.name, slot, spec, kind_of(seed.module))
        before = seed.stage
        with ExitStack() as undo:
            seed.stage = stage
            undo.callback(setattr, seed, "stage", before)
            self._swap(undo, self.host.structure.with_placement(placement))
            undo.pop_all()
        self._gradients.unwatch(seed.name)
        self.registry.disown(seed.name)
        return self._announce(seed)

    def step(self, loss: float | Tensor | None = None) -> None:
        """Advance every seed by one training step; call it once per step, after ``optimizer.step()``."""
        self._step += 1
        self._gradients.step_done()
        for seed in list(self._seeds.values()):
            if seed.stage is Stage.BLENDING and seed.advance():
                seed.enter(after(seed.stage, "reach", seed.name))
                self._announce(seed)

        self.monitor.step(self._seeds.values())

    # Looking at what a seed does

    def shadow(self) -> AbstractContextManager[None]:
        """A pass in which TRAINING seeds run at alpha 1 and only they get gradients.

        Run forward *and* backward inside. The host's gradients, buffers and random streams stay.
        """
        learning = [s.name for s in self._seeds.values() if s.stage is Stage.TRAINING]
        parameters = [p for name in learning for p in self.registry.parameters(name)]
        return shadow_pass(self.host, parameters)

    @contextmanager
    def at_alpha(self, seed: Seed | str, alpha: float) -> Iterator[None]:
        """Let one seed run at another alpha inside: to measure what it contributes, by the loss."""
        seed = self._find(seed)
        if not seed.is_live:
            raise StageError(f"seed {seed.name!r} is {seed.stage.name}: it has no alpha to change")
        before = seed.alpha
        phase = self.host.phase
        try:
            if phase is Phase.ISOLATED:
                self.host.adopt(self.host.structure, Phase.BLENDED, self.host.grafts())
            seed.set_alpha(alpha)
            yield
        finally:
            seed.set_alpha(before)
            if phase is Phase.ISOLATED:
                self.host.adopt(self.host.structure, phase, self.host.grafts())

    # Inside

    def _around(self, slot: Slot) -> nursery.Surroundings:
        module = self.host.regions[slot.region].module
        near = next(module.parameters(), None)
        like = near if near is not None else next(self.host.parameters(), torch.empty(0, dtype=slot.dtype))
        return nursery.Surroundings(like.dtype, like.device, module.training)

    def _swap(self, undo: ExitStack, structure: Structure, new: Mapping[str, Graft] | None = None) -> None:
        swap(undo, self.host, structure, phase_for(self._seeds.values(), self.host.is_compiled), new)

    def _name(self, name: str | None, blueprint: BlueprintLike) -> str:
        if name is None:
            return self._names.make(nursery.label(blueprint), self._seeds)
        check_name(name)
        if name in self._seeds:
            raise StageError(f"there is a seed {name!r} already: {self._seeds[name]!r}")
        return name

    def _find(self, seed: Seed | str) -> Seed:
        known = self._seeds.get(seed.name if isinstance(seed, Seed) else seed)
        if isinstance(seed, Seed) and known is not seed:
            known = seed if seed.stage is Stage.CULLED else None  # whose stage refuses everything
        if known is None:
            raise StageError(f"no seed {seed!r} here; there are: {', '.join(self._seeds) or 'none'}")
        return known

    def _report_violations(self, found: list[Violation]) -> None:
        for violation in found:
            self._emit(
                "violation_recorded", what=violation.kind, name=violation.name, magnitude=violation.magnitude
            )

    def _announce(self, seed: Seed) -> None:
        self.monitor.look_soon()
        self._emit("seed_stage", seed.name, stage=seed.stage.name, alpha=seed.alpha, slot=seed.slot)

    def _record_noop(self, operation: str, seed: Seed) -> None:
        self._emit("seed_operation", seed.name, operation=operation, disabled=True)

    def _emit(self, kind: str, seed: str | None = None, **data: Any) -> None:
        self._sinks.emit(Event(kind, self._step, seed, data))


def _enabled_by_environment() -> bool:
    return os.environ.get(ENABLED_VARIABLE, "1").strip().lower() not in ("0", "false", "no", "off")
