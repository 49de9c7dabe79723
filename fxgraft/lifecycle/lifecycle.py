"""The transitions of seeds, each a transaction on host, optimizers and hooks: whole or not at all."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.host import engine
from fxgraft.host.current_form import changed_attributes
from fxgraft.host.growth_history import with_seed
from fxgraft.host.host import Host
from fxgraft.host.insertions import seed_of
from fxgraft.host.stacks import is_inserted
from fxgraft.host.steering import leaving, steering
from fxgraft.lifecycle import order
from fxgraft.lifecycle._averages import average_as_its_original
from fxgraft.lifecycle._channel_axis import refuse_unknown_channels
from fxgraft.lifecycle._refusals import (
    refuse_blocks_around,
    refuse_foreign_seeds,
    refuse_in_passing_block,
)
from fxgraft.lifecycle.building import surroundings
from fxgraft.lifecycle.change import Addition, Change
from fxgraft.lifecycle.inactivity import InactiveSeed, InactivityWatch
from fxgraft.lifecycle.swap import follow_stages, phase_for, swap
from fxgraft.optimizers.gradients import SeedGradients
from fxgraft.optimizers.progress import SeedProgress
from fxgraft.optimizers.registry import SeedParameterRegistry
from fxgraft.schedules import Ramp
from fxgraft.seeds.seed import Seed, amend
from fxgraft.seeds.stage import Stage, after
from fxgraft.slots.structure import Placement, kind_of
from fxgraft.slots.walk import rings
from fxgraft.telemetry.events import logger
from fxgraft_passes import Graft, Slot
from fxgraft_passes.graft import alpha_shape


class Lifecycle:
    """Moves seeds from stage to stage.

    Args:
        host: the host of the seeds.
        optimizers: those that train host and seeds.
        on_stage: called with a seed that has entered another stage.
        on_dropped: called with the name of a seed whose gradients were not finite.
        on_inactive: called with seeds that do not run, or that nothing trains, and why.
        schedulers: learning-rate schedulers, to keep consistent with groups that seeds add to the optimizers.

    Attributes:
        seeds: name -> seed, in the order in which those at one slot stand: that of germination, or another
            one that was asked for.
        departing: the names of seeds that are culled, and whose grafts are still in the graph.
        cold: whether changes leave compiling for later.
        registry: knows which seed owns which parameter.
        gradients: drops gradients of seeds that are not finite, and knows which seeds have received some.
        inactivity: knows why a seed does not run.
        distribute: brings a new seed's parameters to where those of the host are; returns what undoes it.
    """

    def __init__(
        self,
        host: Host,
        optimizers: Sequence[Optimizer],
        on_stage: Callable[[Seed], None],
        on_dropped: Callable[[str], None],
        on_inactive: Callable[[Sequence[InactiveSeed]], None],
        schedulers: Sequence[Any] = (),
    ):
        self.host = host
        model, *_ = engine.trees(host)
        self.registry = SeedParameterRegistry(optimizers, schedulers, model, partial(_rings, host))
        self.gradients = SeedGradients(on_dropped, optimizers)
        self.seeds: dict[str, Seed] = {}
        self.departing: set[str] = set()
        self.cold = False
        self.distribute: Callable[[Addition], Callable[[], None]] = lambda addition: lambda: None
        self._on_stage = on_stage
        self._on_inactive = on_inactive
        self._progress = SeedProgress(self.registry.parameters)
        known = "the optimizer that the manager was made with"
        unknown = "an optimizer with manager.seed_parameters(), as the manager was made without one"
        self.inactivity = InactivityWatch(
            host, self._progress, self.gradients, known if optimizers else unknown
        )
        replaced = weakref.WeakMethod(self._replaced)
        host._links.on_replaced = lambda new: (follow := replaced()) and follow(new)
        host._links.led_by = weakref.ref(self)

    # One change of the structure, or several at once

    def plan_addition(self, seed: Seed, slot: Slot, module: nn.Module, before: str | None = None) -> Addition:
        """The graft and the placement of a seed as they fit the host now. Changes nothing.

        Args:
            seed: among the seeds it stands where it is among `seeds`; one that is not there yet, before
                that of the name ``before``, or behind all.
            slot: where it goes.
            module: what it runs.
            before: the name of a seed.
        """
        refuse_foreign_seeds(self.host.structure, self.seeds, self.departing, seed.name)
        refuse_unknown_channels(self.host, slot, seed.name, seed.spec.mode)
        self.registry.check_places(seed, module)
        around = surroundings(self.host, slot)
        shape = alpha_shape(seed.spec.mode, slot.shape)
        graft = Graft(module, dtype=around.dtype, device=around.device, alpha_shape=shape)
        if seed.spec.call is None:
            graft.train(around.training)
        else:  # a block keeps the modes of its parts, as that which it is a copy of has them
            graft.training = around.training
        placement = Placement(seed.name, slot, seed.spec, kind_of(module))
        return Addition(seed, placement, graft, order.behind(self.seeds, seed.name, before))

    def commit(self, change: Change, warm_up: bool = True) -> None:
        """Swap in the structure that ``change`` leads to: host, optimizers and hooks, or nothing.

        Args:
            change: what is added, culled, blended and fossilized.
            warm_up: whether to compile what is missing before the structure is live.
        """
        if not change.moves_grafts and not change.ramps and not change.growths:
            return
        with ExitStack() as undo:
            self._carry_out(undo, change, warm_up and not self.cold)
            undo.pop_all()
        self._settle(change)

    @contextmanager
    def dry_run(self, change: Change) -> Iterator[None]:
        """A context in which ``change`` is applied, uncompiled and unreported; it is undone at the end."""
        with ExitStack() as undo:
            self._carry_out(undo, change, warm_up=False, is_dry_run=True)
            yield

    def _carry_out(self, undo: ExitStack, change: Change, warm_up: bool, is_dry_run: bool = False) -> None:
        """The part of a change that can be reverted: what affects the code that runs, and its training."""
        refuse_blocks_around(self.seeds, change.removals)
        for addition in change.additions:
            self._enter(undo, addition)
        self._remove(undo, change.removals)
        is_first = any(seed.stage is Stage.TRAINING for seed, _ in change.ramps)
        for seed, ramp in change.ramps:
            self._begin_ramp(undo, seed, ramp)
        for seed, _ in change.fossils:
            undo.callback(amend, seed, stage=seed.stage, paused=seed.paused)
            # Not paused: the host's parameters do not stand still.
            amend(seed, stage=after(seed.stage, "fossilize", seed.name), paused=False)
        grafts = {addition.seed.name: addition.graft for addition in change.additions}
        if change.moves_grafts:
            phase = phase_for(self.seeds.values())
            target = change.target(self.host.structure)
            # What grows is compiled in its last form only.
            swap(undo, self.host, target, phase, grafts, warm_up and not change.growths)
        elif is_first:  # a new target is for the forward that runs already
            undo.callback(
                engine.set_structure, self.host, self.host.structure, self.host.phase, self.host.grafts()
            )
            follow_stages(self.host, self.seeds.values())
        for addition in change.additions:
            self._join(undo, addition)
        for growth in change.growths:
            if is_dry_run:
                growth.dry_run(undo)
            else:
                growth.carry_out(undo)

    def _settle(self, change: Change) -> None:
        """The rest of a change that was applied."""
        for seed in change.removals:
            self.forget_training(seed)
        for name in change.departed:
            self.departing.discard(name)
        for seed, _ in change.fossils:
            self.gradients.unwatch(seed.name)
            self.registry.release(seed.name)
        moved = [addition.seed for addition in change.additions]
        moved += [seed for seed, _ in (*change.ramps, *change.fossils)]
        for seed in dict.fromkeys(moved):
            self._on_stage(seed)
        if found := changed_attributes(self.host, self._slots_of(change.additions)):
            logger.warning(
                "set after tracing, so that no call there runs with seeds: expected %s. "
                "Trace again, or keep what changes in a buffer, or in a module",
                "; ".join(found),
            )

    def _slots_of(self, additions: Sequence[Addition]) -> list[Slot]:
        """Where seeds that were added stand, in the graphs of now."""
        born = {addition.seed.name for addition in additions}
        return [p.slot for p in self.host.structure.placements if p.seed in born]

    def _enter(self, undo: ExitStack, addition: Addition) -> None:
        """GERMINATED -> TRAINING: what comes before the swap."""
        seed, module = addition.seed, addition.graft.module
        undo.callback(self.distribute(addition))
        self.registry.claim(seed, module, partial(engine.owns, self.host))
        undo.callback(self.registry.release, seed.name)
        undo.callback(seed.leave, seed.stage)
        seed.take(addition.graft)
        seed.enter(after(seed.stage, "go live", seed.name))
        undo.callback(self.reorder, {n: other for n, other in self.seeds.items() if other is not seed})
        self.insert_seed(seed, addition.before)
        for each in (self.host, *self.host._links.followers):
            undo.callback(setattr, each, "widenings", each.widenings)
            each.widenings = with_seed(seed.name, _inserted_original(seed), each.widenings)

    def _join(self, undo: ExitStack, addition: Addition) -> None:
        """Into the optimizers and under watch, which comes after the swap."""
        seed, module = addition.seed, addition.graft.module
        undo.callback(self.registry.leave, list(module.parameters()))
        self.registry.join(seed, module, f"_seeds.{seed.name}.module")
        self.registry.copy_state(addition.like)
        average_as_its_original(self.host, seed)
        undo.callback(self.gradients.unwatch, seed.name)
        self.gradients.watch(seed.name, list(module.parameters()))
        self.begin(seed)

    def begin(self, seed: Seed) -> None:
        """What a seed does is followed from here: it is live, or its state was loaded."""
        self._progress.begin(seed)
        self.inactivity.begin(seed)

    def restart_training_count(self, seed: Seed) -> None:
        """The parameters of a seed are what they were when it was germinated: it counts as not trained."""
        self._progress.begin(seed)
        amend(seed, trained_steps=0)

    def _begin_ramp(self, undo: ExitStack, seed: Seed, ramp: Ramp) -> None:
        """TRAINING, BLENDING or HOLDING -> BLENDING; or -> HOLDING, where the ramp takes no step."""
        undo.callback(self._restore_ramp, seed, seed.stage, seed.alphas, seed.ramp, seed.ramp_step)
        seed.begin(ramp)
        if ramp.starts != seed.alphas:  # of an act in which another ramp was to come before
            seed.set_alpha(*ramp.starts)
        seed.enter(after(seed.stage, "blend", seed.name))
        if not ramp.length:
            seed.advance()
            seed.enter(after(seed.stage, "reach", seed.name))

    def _restore_ramp(
        self, seed: Seed, stage: Stage, alphas: tuple[float, ...], ramp: Ramp | None, step: int
    ) -> None:
        amend(seed, ramp=ramp, ramp_step=step)
        seed.set_alpha(*alphas)
        seed.enter(stage)

    def _remove(self, undo: ExitStack, seeds: Sequence[Seed]) -> None:
        undo.callback(self.reorder, dict(self.seeds))
        for seed in seeds:
            del self.seeds[seed.name]

    def _replaced(self, new: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Parameters were replaced by others: optimizers, owners and hooks follow."""
        self.registry.replace(new)
        for seed in self.seeds.values():
            if seed.is_live and seed.module is not None:
                self.gradients.unwatch(seed.name)
                self.gradients.watch(seed.name, list(seed.module.parameters()))
                self.gradients.pause(seed.name, seed.paused)

    def take_out(self, undo: ExitStack, seeds: Sequence[Seed]) -> None:
        """Run the host without these, uncompiled, within a change; `forget_training` of each follows."""
        refuse_blocks_around(self.seeds, seeds)
        self._remove(undo, seeds)
        structure = Change(removals=tuple(seeds)).target(self.host.structure)
        swap(undo, self.host, structure, phase_for(self.seeds.values()), {}, warm_up=False)

    def forget_training(self, seed: Seed) -> None:
        """Out of optimizers and hooks, for a seed that has left the graph."""
        self.gradients.unwatch(seed.name)
        if seed.module is not None:
            # Its own of now, and those that joined: load_state_dict(assign=True) makes others of them.
            self.registry.leave([*seed.module.parameters(), *self.registry.parameters(seed.name)])
        self.registry.release(seed.name)

    def reorder(self, seeds: Mapping[str, Seed]) -> None:
        """Replace `seeds` by these."""
        seeds = dict(seeds)
        self.seeds.clear()  # in place: others look at this very dictionary
        self.seeds.update(seeds)

    def insert_seed(self, seed: Seed, before: Sequence[str] = ()) -> None:
        """Insert ``seed`` into `seeds`, before the first of those names, if it is not there already."""
        if seed.name not in self.seeds:
            self.reorder(order.inserted(self.seeds, seed, before))

    def go_live(self, seed: Seed, slot: Slot, module: nn.Module, before: str | None = None) -> None:
        """GERMINATED -> TRAINING: into the graph, the host's modules and the optimizers.

        ``before`` is as for `plan_addition`.
        """
        self.commit(Change(additions=(self.plan_addition(seed, slot, module, before),)))

    def steering(self) -> dict[str, dict[str, Tensor]]:
        """Name of each of its grafts in the graph -> what the buffers that steer it have to be."""
        grafts = self.host.grafts()
        here = {n: steering(self.seeds[n], graft) for n, graft in grafts.items() if n in self.seeds}
        return here | {name: leaving(grafts[name]) for name in self.departing & grafts.keys()}

    def foreign_seeds(self) -> list[str]:
        """The seeds in the host that are of another manager, fossils included."""
        placed = [placement.seed for placement in self.host.structure.placements]
        return [name for name in placed if name not in self.seeds and name not in self.departing]

    def admit(self, seed: Seed, module: nn.Module, tries: bool = True) -> None:
        """Raise `BlueprintError` if ``module`` has tensors of others, or cannot be trained.

        ``tries``: whether an optimizer that is not known is tried out; on the training thread only.
        """
        self.registry.admit(seed, module, partial(engine.owns, self.host), tries)

    def begin_blend(self, seed: Seed, ramp: Ramp) -> None:
        """TRAINING, BLENDING or HOLDING -> BLENDING; or -> HOLDING, where the ramp takes no step."""
        self.commit(Change(ramps=((seed, ramp),)))

    def pause(self, seed: Seed, paused: bool) -> None:
        """Pause or resume the ramp and the updates of a live seed."""
        amend(seed, paused=paused)
        self.gradients.pause(seed.name, paused)

    def advance(self, seeds: Iterable[Seed]) -> None:
        """One training step of these; BLENDING -> HOLDING at the end of the ramp."""
        live = [seed for seed in seeds if seed.is_live]
        blending = [seed for seed in live if seed.stage is Stage.BLENDING]
        alphas = {seed.name: seed.next_alphas() for seed in blending}  # first: a schedule may raise
        self.gradients.step_done()
        learned = self.gradients.learned
        for seed in live:
            seed.count()
            stage = seed.stage
            if stage is Stage.TRAINING:
                if self._progress.learned(seed, seed.name in learned):
                    seed.count(trained=True)
            elif stage is Stage.BLENDING and seed.advance(alphas[seed.name]):
                seed.enter(after(seed.stage, "reach", seed.name))
                self._on_stage(seed)
        if not self.inactivity.looks:
            return
        if silent := [found for seed in live if (found := self.inactivity.look(seed))]:
            self._on_inactive(silent)

    def cull(self, *seeds: Seed) -> None:
        """Any stage before FOSSILIZED -> CULLED: out of graph, modules, optimizers and hooks."""
        for seed in seeds:
            after(seed.stage, "cull", seed.name)
        self.forget(*seeds)
        self.mark_culled(*seeds)

    def mark_culled(self, *seeds: Seed) -> None:
        """-> CULLED, for seeds that are out of everything."""
        for seed in seeds:
            seed.leave(Stage.CULLED)
            self._on_stage(seed)

    def forget(self, *seeds: Seed) -> None:
        """Take seeds out of everything, whatever their stages."""
        self.commit(Change(removals=tuple(seed for seed in seeds if seed.module is not None)))
        for seed in seeds:
            self.seeds.pop(seed.name, None)

    def retire(self, seed: Seed) -> None:
        """Any live stage -> CULLED at once, with no other structure: at alpha 0, which changes no value.

        The graft departs from the graph with a later `commit`; its name is not free until then.
        """
        stage = after(seed.stage, "cull", seed.name)
        refuse_blocks_around(self.seeds, [seed])
        if seed.module is None:
            self.cull(seed)
            return
        graft = self.host.graft(seed.name)
        del self.seeds[seed.name]
        self.departing.add(seed.name)
        seed.set_alpha(*(0.0 for _ in seed.alphas))
        graft.learning.fill_(False)
        graft.released.fill_(False)
        follow_stages(self.host, self.seeds.values())
        self.forget_training(seed)
        seed.leave(stage)
        self._on_stage(seed)

    def fossilize(self, seed: Seed, ramp: Ramp | None = None) -> None:
        """HOLDING -> FOSSILIZED: a plain part of the host, its parameters the host's.

        With a ``ramp`` that takes no step it is taken to the end of that first, from any live stage.
        """
        alpha, ramps = (seed.alpha, ()) if ramp is None else (ramp.target, ((seed, ramp),))
        self.commit(Change(fossils=((seed, self.fossil(seed, alpha)),), ramps=ramps))

    def fossil(self, seed: Seed, alpha: float, module: nn.Module | None = None) -> Placement:
        """The placement of a seed as a plain part of the host; with ``module``, if it has none yet."""
        refuse_in_passing_block(self.seeds, seed)
        module = seed.module if module is None else module
        assert module is not None
        slot = self.host.site(seed.slot, seed.source)
        spec = replace(seed.spec, isolated=False, fossil=alpha)
        return Placement(seed.name, slot, spec, kind_of(module))


def _rings(host: Host, slot: str, counts: Callable[[str], bool]) -> Iterator[tuple[str, ...]]:
    """What is around a slot, named as in the model: in an inserted block, as in that which it is like."""
    named = host.structure.in_model
    for ring in rings(host.slot(slot), host.regions, lambda path: counts(named(path))):
        yield tuple(map(named, ring))


def _inserted_original(seed: Seed) -> str | None:
    """The inserted block (its seed) of which one is a copy; None where it is one of a block of the model."""
    like = seed.config.get("like") if seed.spec.call is not None else None
    return seed_of(like) if isinstance(like, str) and is_inserted(like) else None
