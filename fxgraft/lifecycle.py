"""The transitions of seeds, each a transaction on host, optimizers and hooks: whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxgraft.errors import StageError
from fxgraft.gradients import SeedGradients
from fxgraft.host import Host
from fxgraft.nursery import surroundings
from fxgraft.registry import SeedParameterRegistry
from fxgraft.schedules import Ramp
from fxgraft.seed import Seed
from fxgraft.stage import Stage, after
from fxgraft.structure import Placement, Structure, kind_of
from fxgraft.swap import follow_stages, phase_for, swap
from fxgraft_passes import Graft, GraftSpec, Slot
from fxgraft_passes.graft import alpha_shape


class Lifecycle:
    """Moves seeds from stage to stage.

    Args:
        host: where the seeds are.
        optimizers: what trains them.
        on_stage: called with a seed that has entered another stage.
        on_dropped: called with the name of a seed whose gradients were not finite.
        schedulers: to keep in step with groups that seeds add to the optimizers.

    Attributes:
        seeds: name -> seed, in the order of germination.
    """

    def __init__(
        self,
        host: Host,
        optimizers: Sequence[Optimizer],
        on_stage: Callable[[Seed], None],
        on_dropped: Callable[[str], None],
        schedulers: Sequence[Any] = (),
    ):
        self.host = host
        self.registry = SeedParameterRegistry(optimizers, schedulers)
        self.gradients = SeedGradients(on_dropped)
        self.seeds: dict[str, Seed] = {}
        self._on_stage = on_stage

    def go_live(self, seed: Seed, slot: Slot, module: nn.Module) -> None:
        """GERMINATED -> TRAINING: into the graph, the host's modules and the optimizers."""
        self._refuse_strangers(seed)
        self.registry.check(seed.hyper, seed.name, module)
        around = surroundings(self.host, slot)
        shape = alpha_shape(seed.spec.mode, slot.shape)
        graft = Graft(module, dtype=around.dtype, device=around.device, alpha_shape=shape)
        graft.train(around.training)
        placement = Placement(seed.name, slot, seed.spec, kind_of(module))
        with ExitStack() as undo:
            self.registry.claim(seed, module, self.host.owns)
            undo.callback(self.registry.disown, seed.name)
            undo.callback(seed.leave, seed.stage)
            seed.take(graft)
            seed.enter(after(seed.stage, "go live", seed.name))
            undo.callback(self.seeds.pop, seed.name)
            self.seeds[seed.name] = seed
            self._swap(undo, self.host.structure.with_placement(placement), {seed.name: graft})
            undo.callback(self.registry.leave, list(module.parameters()))
            self.registry.join(module, f"_seeds.{seed.name}.module", seed.name, seed.hyper)
            undo.callback(self.gradients.unwatch, seed.name)
            self.gradients.watch(seed.name, list(module.parameters()))
            undo.pop_all()
        self._on_stage(seed)

    def _refuse_strangers(self, seed: Seed) -> None:
        """Raise `StageError` if the host has live grafts of another manager, or one of that name."""
        for placement in self.host.structure.placements:
            if placement.seed == seed.name or (
                placement.spec.fossil is None and placement.seed not in self.seeds
            ):
                raise StageError(
                    f"cannot germinate {seed.name!r}: the host has a seed {placement.seed!r} of another "
                    f"manager (or it is a copy of a host that had). One manager to a host; host.clear() "
                    f"takes all out"
                )

    def admit(self, seed: Seed, module: nn.Module) -> None:
        """Raise `BlueprintError` if ``module`` has parameters of the host or of another seed."""
        self.registry.admit(seed, module, self.host.owns)

    def begin_blend(self, seed: Seed, ramp: Ramp) -> None:
        """TRAINING, BLENDING or HOLDING -> BLENDING."""
        stage = after(seed.stage, "blend", seed.name)
        seed.begin(ramp)
        seed.enter(stage)
        follow_stages(self.host, self.seeds.values())
        self._on_stage(seed)

    def advance(self, seed: Seed) -> None:
        """One training step; BLENDING -> HOLDING at the end of the ramp."""
        if seed.stage is Stage.TRAINING:
            seed.trained_steps += 1
        elif seed.stage is Stage.BLENDING and seed.advance():
            seed.enter(after(seed.stage, "reach", seed.name))
            self._on_stage(seed)

    def cull(self, seed: Seed) -> None:
        """Any live stage -> CULLED: out of graph, modules, optimizers and hooks."""
        stage = after(seed.stage, "cull", seed.name)
        self.forget(seed)
        seed.leave(stage)
        self._on_stage(seed)

    def forget(self, seed: Seed) -> None:
        """Take a seed out of everything, whatever its stage."""
        order = list(self.seeds)
        with ExitStack() as undo:
            del self.seeds[seed.name]
            undo.callback(self._restore, seed, order)
            self._swap(undo, self.host.structure.without(seed.name))
            undo.pop_all()
        self.gradients.unwatch(seed.name)
        if seed.module is not None:
            # Its own of now, and those that joined: load_state_dict(assign=True) makes others of them.
            self.registry.leave([*seed.module.parameters(), *self.registry.parameters(seed.name)])
        self.registry.disown(seed.name)

    def fossilize(self, seed: Seed) -> None:
        """HOLDING -> FOSSILIZED: a plain part of the host, its parameters the host's."""
        assert seed.module is not None
        slot = self.host.slots[seed.slot]
        spec = GraftSpec(seed.spec.mode, seed.spec.objective, seed.spec.radius, False, slot.copy, seed.alpha)
        placement = Placement(seed.name, slot, spec, kind_of(seed.module))
        with ExitStack() as undo:
            undo.callback(setattr, seed, "stage", seed.stage)
            seed.stage = after(seed.stage, "fossilize", seed.name)
            self._swap(undo, self.host.structure.with_placement(placement))
            undo.pop_all()
        self.gradients.unwatch(seed.name)
        self.registry.disown(seed.name)
        self._on_stage(seed)

    def _swap(self, undo: ExitStack, structure: Structure, new: Mapping[str, Graft] | None = None) -> None:
        phase = phase_for(self.seeds.values())
        swap(undo, self.host, structure, phase, new)

    def _restore(self, seed: Seed, order: list[str]) -> None:
        self.seeds[seed.name] = seed
        for name in order:
            self.seeds[name] = self.seeds.pop(name)
