"""The manager: the façade through which seeds live on a host."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft import schedules
from fxgraft.commands import Command, Reply
from fxgraft.commands.inbox import Inbox
from fxgraft.deeper.spread import At
from fxgraft.distributed import is_wrapped, peers_of
from fxgraft.errors import ChannelError, CheckpointError, DistributedError, SlotError, StageError
from fxgraft.explore import exploration as explore
from fxgraft.explore import scoring
from fxgraft.explore.autogrow import Growth
from fxgraft.explore.candidates import Choice, find
from fxgraft.explore.exploration import Exploration
from fxgraft.explore.measuring import Evaluate, check
from fxgraft.explore.scoring import Score
from fxgraft.explore.terms import Course, When
from fxgraft.gates import DEFAULT_GATES, Gate
from fxgraft.host.run_summary import summarize_run
from fxgraft.isolation import probing
from fxgraft.isolation.check import Violation
from fxgraft.isolation.monitor import DEFAULT_INTERVAL, LATER, IsolationMonitor
from fxgraft.isolation.shadow import shadow_pass
from fxgraft.lifecycle import nursery, order
from fxgraft.lifecycle.act import Act, at_once
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.lifecycle.nursery import BlueprintLike
from fxgraft.lifecycle.plan import GerminationPlan, plan
from fxgraft.manager import settings
from fxgraft.manager.background import Background
from fxgraft.manager.deepening import Deepening, Wish
from fxgraft.manager.dispatch import Dispatcher
from fxgraft.manager.journal import Journal, check_loss
from fxgraft.manager.reporter import Reporter
from fxgraft.manager.saver import ManagerState, Saver
from fxgraft.manager.together import Acts
from fxgraft.optimizers.registry import SeedParameterRegistry
from fxgraft.optimizers.requests import Groups
from fxgraft.schedules import Ramp, Schedule
from fxgraft.seeds import streams
from fxgraft.seeds.seed import Seed, amend
from fxgraft.seeds.stage import Stage
from fxgraft.seeds.stage import after as stage_after
from fxgraft.telemetry import Sink, logger
from fxgraft.telemetry.metrics import collect
from fxgraft.util import validate
from fxgraft.util.interrupts import interruptible, uninterruptible
from fxgraft.util.text import pluralize
from fxgraft.wider import Widening, fuse, widen
from fxgraft_passes import GraftSpec, Objective, Slot
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.graft import check_name

_FOR_RANK_0 = "commands are given to rank 0, which tells the others"


class SeedManager:
    """Germinates, blends, culls and fossilizes seeds on a host.

    Every method that changes the host does so as a whole or not at all.

    Args:
        host: a `Host`, or the ``DistributedDataParallel`` around one, or around a module with one in it.
        optimizer: what trains the seeds: None, one optimizer, or several.
        schedulers: learning-rate schedulers to keep in step with groups that seeds add.
        enabled: False makes every germination a recorded no-op. By default the environment
            variable ``FXGRAFT_DYNAMIC_SEEDS`` decides (``0`` disables), and otherwise True.
        strict: raise `IsolationError` out of the training step where isolation is violated.
        sinks: callables that are given every `fxgraft.telemetry.Event`.
        check_every: training steps between two isolation checks, beside the one after each change;
            0 for none. A check costs two passes of the model.
        gates: action (``"blend"``, ``"fossilize"``) -> what a seed must pass for it.
        cooldown: for how many steps a slot refuses new seeds after a cull there.
        prefetch_timeout: seconds after which a germination with ``wait=False`` is given up: to build its
            module, and then to compile its structure; None: never.
        metrics_every: training steps between two entries of the journal (the events ``steps``, ``compiled``
            and ``metrics``) to the sinks; 0 for none.
        helper: ``"auto"`` compiles in a helper process what training is not to wait for, where such a
            process can be forked (Linux, a host on the CPU); ``"off"`` never does.
        shard_from: on a host that ``fully_shard`` has sharded, the elements from which a parameter of a seed
            is sharded as well, and not replicated; None: 65,536.
        ddp: the ``DistributedDataParallel`` around a module that contains the host, where several do.

    Raises:
        DistributedError: several ranks train the host, and the manager was given it alone.
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
        gates: Mapping[str, Gate] = DEFAULT_GATES,
        cooldown: int = 0,
        prefetch_timeout: float | None = 300.0,
        metrics_every: int = 0,
        helper: str = "auto",
        shard_from: int | None = None,
        ddp: nn.Module | None = None,
    ):
        inner = settings.host_of(host)
        settings.check_numbers(check_every, cooldown, metrics_every, prefetch_timeout, shard_from)
        validate.boolean("strict", strict)
        if inner.structure.placements:
            logger.warning(
                "the host has seeds of another manager (%s): this one does not lead, save or cull them",
                ", ".join(placement.seed for placement in inner.structure.placements),
            )
        self.host = inner
        self.schedulers = settings.schedulers_of(schedulers)
        self.enabled = settings.is_enabled(enabled)
        self._reporter = Reporter(
            settings.sinks_of(sinks), lambda: summarize_run(inner, self._seeds.values())
        )
        self._optimizers = settings.optimizers_of(optimizer)
        if self._optimizers and not any(map(inner.owns, settings.parameters_of(self._optimizers))):
            logger.warning("the optimizer has no parameter of the host's: is it the one of another model?")
        self._lifecycle = Lifecycle(
            inner,
            self._optimizers,
            self._on_stage,
            self._reporter.gradients_dropped,
            self._reporter.inactive_seeds,
            self.schedulers,
        )
        self._seeds = self._lifecycle.seeds
        self._dispatcher = Dispatcher(self, self._reporter)
        self._inbox = Inbox()
        self.peers = peers_of(
            settings.wrapper_of(host, inner, ddp),
            inner,
            self._inbox,
            self._state,
            self._lifecycle.gradients.arrived,
            self._optimizers,
            strict,
            shard_from,
        )
        checks = check_every if self.peers.folder is None else 0  # the check calls the model part by part
        self.monitor = IsolationMonitor(inner, checks, strict, self._on_violations)
        self._lifecycle.distribute = self.peers.distribute
        self._lifecycle.gradients.average = self.peers.average
        self._lifecycle.gradients.is_shared = self.peers.size > 1
        self._background = Background(self._lifecycle, self._reporter, self.peers, prefetch_timeout, helper)
        self._journal = Journal(inner, self._reporter, self.metrics, metrics_every)
        self._gates = settings.gates_of(gates)
        self._cooldown = cooldown
        self._memory = ManagerState(self.peers.share(torch.initial_seed()))
        self._acts = Acts(self._lifecycle, self._background, self._memory)
        self._routines: list[Routine] = []
        self._deepening = Deepening(
            inner, self._lifecycle, self._acts, self._reporter, self._memory, self._name, self._tell_birth
        )
        self._saver = Saver(
            self._lifecycle, self._optimizers, self.schedulers, self._reporter, self.peers, self._memory
        )

    # What there is

    @property
    def seeds(self) -> Mapping[str, Seed]:
        """Name -> seed: those that live, and those that became part of the host."""
        return MappingProxyType(self._seeds)

    @property
    def steps(self) -> int:
        """How many training steps there have been, those before a `save` included."""
        return self._reporter.step

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """What trains the seeds."""
        return self._optimizers

    @property
    def registry(self) -> SeedParameterRegistry:
        """Which seed owns which parameter."""
        return self._lifecycle.registry

    def seed_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of live seeds."""
        for seed in self._seeds.values():
            yield from self.registry.parameters(seed.name)

    def __repr__(self) -> str:
        seeds = pluralize(len(self._seeds), "seed") if self._seeds else "no seeds"
        lines = [f"SeedManager at step {self.steps}, {seeds}"]
        return "\n".join([*lines, *(f"  {seed!r}" for seed in self._seeds.values())])

    # The lifecycle

    @uninterruptible
    def germinate(
        self,
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
        before: str | None = None,
        after: str | None = None,
        **config: Any,
    ) -> Seed:
        """Splice a new seed in behind a slot.

        It is in TRAINING when the call returns, or, with ``wait=False``, in GERMINATED: its module is
        built in another thread, and a later `step` lets it go live.

        Args:
            slot_name: one of ``host.slots``; or an edge ``"relu->fc2"``, a module's input ``"->fc2"``, an
                element ``"lstm[0]"``, all calls of a module ``"fc@*"`` (see `fxgraft.slots.places`).
            blueprint: a registered name, an ``nn.Module``, or a factory ``Slot -> nn.Module``.
            source: an earlier slot, whose value the seed reads in the place of its own slot's: a branch
                around what lies between. The seed's output has the shape of the slot, and its input that
                of the source. Slots of two regions may be joined so, where the regions up to the one
                around both can run as one graph; it does while the branch lives.
            name: the seed's; a new one is made by default.
            mode: ``"residual"`` (the default) adds the seed's output, ``"convex"`` replaces the
                host's value by it, ``"gated"`` adds it scaled by a gate that the seed learns,
                ``"channelwise"`` adds it with an alpha for each channel.
            objective: what the seed learns from in isolation: ``"trust"``, ``"shadow"``,
                ``"straight_through"``, or an `fxgraft.Objective` with a radius of its own.
            isolated: whether nothing may reach a host gradient, or a derivative of any order, through the
                seed. With False the host gets through a seed in TRAINING what the seed learns from, which is
                no derivative of the output: blend at once.
            wait: whether to wait until the seed is live.
            hyper: settings of the seed's own (``{"lr": 1e-3, "weight_decay": 0.0}``), in groups of its own:
                one for each group that its parameters would join, otherwise like that. Its lr is scaled
                along the schedule of that group as the initial lr there is, or as the peak of a schedule
                that has one (OneCycleLR, CyclicLR). By default the seed joins existing groups.
            optimizer: the optimizer that is to train the seed, one of the manager's, or its number among
                them. By default each parameter goes to the one that holds the layers around the slot.
            groups: the group that all parameters of the seed are to join, by its place in
                ``optimizer.param_groups`` or itself (``optimizer.param_groups[1]``); or a function
                ``(name, parameter) -> place, group or None``, which is asked for each, by its name in the
                seed (``"up.weight"``), several times, and leaves it to the rule by None. By default the
                group that holds what is of the parameter's kind around the slot. A blueprint that has an
                option ``groups`` of its own is given a number (``"norm", groups=4``), and nothing else.
            before: the name of a seed at this slot that the new one is to stand directly before. Seeds at one
                slot compose in the order in which they were germinated, unless this or ``after`` is given.
            after: the name of a seed at this slot that it is to stand directly behind; with ``before``:
                anywhere behind.
            **config: passed to the blueprint's factory.

        Raises:
            SlotError: there is no such slot, or no branch from that source to it.
            BlueprintError: the blueprint is unknown, fails, or does not fit the slot.
            ValueError: for an unknown mode, objective or hyper-parameter, an invalid name, an
                optimizer or a group that is not there, or a ``hyper`` where an optimizer has a scheduler that
                is not in ``schedulers``.
            StageError: the name is taken, or there are no such seeds as ``before`` and ``after`` name there.
        """
        self._allow("germinate")
        if torch.is_inference_mode_enabled():
            raise StageError(
                "cannot germinate in torch.inference_mode(): what is made there cannot be trained"
            )
        slot = self.host.site(slot_name, source)
        slot_name = slot.name
        wait_for = self._memory.refuses_until.get(slot_name, 0) - self._reporter.step
        if self.enabled and wait_for > 0:
            raise SlotError(f"slot {slot_name!r} cools down after a cull, for {wait_for} more steps")
        spec = _spec(slot, mode, objective, isolated)
        follower = order.place(self.host, self._acts.staying(), slot, before, after)
        label = nursery.label(blueprint)
        registered = isinstance(blueprint, str)
        groups, config = _separate_groups(blueprint, groups, config)
        seed = Seed(self._name(name, blueprint), slot_name, label, spec, config=config, registered=registered)
        if not self.enabled:
            self._lifecycle.enlist(seed, order.behind(self._seeds, seed.name, follower))
            self._reporter.operation("germinate", seed, disabled=True)
            return seed
        self.registry.wish(seed, hyper, optimizer, groups)
        amend(seed, source=slot.names[1])
        if spec.mode == "convex" and isolated:
            logger.warning(
                "seed %r: an isolated convex seed starves the host before slot %r of gradients as "
                "alpha grows; mode='residual' does not",
                seed.name,
                slot_name,
            )
        amend(seed, stage=stage_after(seed.stage, "germinate", seed.name))
        key = streams.key_of(self._memory.run_seed, seed.name)
        around = nursery.surroundings(self.host, slot)
        admit = partial(self._lifecycle.admit, seed, tries=wait)
        build = partial(nursery.grow, blueprint, slot, spec.mode, around, key, config, admit)
        began = time.monotonic()
        if self._acts.open is not None:
            with interruptible():
                module = build()
            self._plan_germination(seed, slot, module, follower, began)
            self._acts.open.waits &= wait
        elif wait:
            with interruptible():
                module = build()
            self._lifecycle.go_live(seed, slot, module, follower)
            self._reporter.live_after((time.monotonic() - began) * 1e3, seed, prefetched=False)
        else:
            self._lifecycle.enlist(seed, order.behind(self._seeds, seed.name, follower))
            self._background.germinate(seed, slot, build)
            self._on_stage(seed)
        return seed

    @uninterruptible
    def deepen(
        self,
        stack: str,
        count: int = 1,
        *,
        at: At = None,
        init: str = "zero",
        blend: int = 0,
        isolated: bool = False,
        optimizer_state: str = "fresh",
        name: str | None = None,
        wait: bool = True,
        like: Sequence[int] | None = None,
    ) -> list[Seed]:
        """Insert further blocks in a stack, as copies of those that are there: whole, or not at all.

        An inserted block gets all the arguments that the block in front of it gets, runs in calls of any
        form, and is a place like any other: it has slots, and more blocks can be put behind it.

        Args:
            stack: one of ``host.stacks``.
            count: how many blocks.
            at: None spreads them evenly; ``"end"``, ``"start"`` (in front of the first block), or a list of
                the indices, in ``host.stacks[stack].blocks``, of the blocks to stand behind.
            init: ``"zero"`` copies the block in front (at the start: the first one) and zeroes the output
                layers of its branches, which are found on its graph: the function is kept to the bit.
                ``"copy"`` copies it. ``"random"`` initialises anew, as the model does.
            blend: in how many steps their share grows from 0 to 1; 0: they are there at once, as fossils.
            isolated: whether they learn first without the host feeling them: with ``blend=0`` they are seeds
                in TRAINING then, for `blend` and `fossilize`.
            optimizer_state: ``"copy"`` gives each parameter the optimizer's state of that which it is a copy
                of; ``"fresh"`` none. Each joins the group of that one either way: its lr and weight decay.
            name: the name of the seed; of several, ``<name>_0``, ``<name>_1``, …; by default new ones.
            wait: False lets them land at a later `step`, prepared in the background.
            like: the indices of the blocks to copy, one for each new block, in the place of those in front.

        Returns:
            The seeds, in running order: FOSSILIZED ones with ``blend=0``. Seeds in a block, and hooks on it,
            are not copied; ``nn.Dropout`` in a copy draws from a stream of its own.

        Raises:
            SlotError: there is no such stack, no block can stand there, or there are no output layers.
            BlueprintError: nothing initialises a parameter of the block; or it is isolated, and would draw
                from the global random stream.
            ValueError: for a count, place or option that cannot be.
            StageError: the name is taken.
        """
        self._allow("deepen")
        wish = Wish(init, blend, isolated, optimizer_state)
        with self._acts.block(validate.boolean("wait", wait)):
            return self._deepening.deepen(stack, count, at, like, wish, name, self.enabled)

    def plan(
        self,
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
        before: str | None = None,
        after: str | None = None,
        **config: Any,
    ) -> GerminationPlan:
        """What `germinate` with these arguments would change. Changes nothing, and needs no data.

        The seed is built on the ``meta`` device, so the host may be there too. What can only be known from
        weights is not looked at: whether they are finite, and whether they are the host's.

        Raises:
            SlotError, BlueprintError, ValueError: as `germinate` would.
        """
        slot = self.host.site(slot_name, source)
        name = name or self._memory.names.foresee(nursery.label(blueprint), self._taken())
        follower = order.place(self.host, self._seeds, slot, before, after)
        behind = order.behind(self._seeds, name, follower)
        groups, config = _separate_groups(blueprint, groups, config)
        seed = Seed(name, slot.name, nursery.label(blueprint), _spec(slot, mode, objective, isolated))
        self.registry.wish(seed, hyper, optimizer, groups)
        foresee = partial(self.registry.foresee, seed)
        return plan(self.host, slot, seed.spec, blueprint, name, config, behind, foresee)

    @uninterruptible
    def blend(
        self,
        seed: Seed | str,
        *,
        to: float = 1.0,
        steps: int = 100,
        schedule: str | Schedule = "cosine",
        warmup: int = 0,
        force: bool = False,
    ) -> None:
        """Move a seed's alpha to ``to`` within ``steps`` calls of `step`, from where it is now.

        While an isolated seed blends, and after it, the host's gradients take the direct path only: they are
        those of the output with what the seed adds taken for a constant. What is taken with respect to an
        *input* (physics-informed losses, forces, gradient penalties on inputs) is then not the derivative of
        the output; a warning says so, once. For such losses germinate with ``isolated=False``, and blend at
        once: a blend that is not isolated has all derivatives of its value.

        Args:
            seed: from TRAINING, or again from BLENDING or HOLDING, also downwards.
            to: the target, in [0, 1].
            steps: how many training steps it takes; 0 is at once: it is HOLDING when the call returns.
            schedule: ``"linear"``, ``"cosine"``, ``"sigmoid"``, or a monotone callable that takes
                the share of the steps done to the share of the way, both in [0, 1].
            warmup: how many steps alpha stays where it is, before those.
            force: do so whatever the gates say, also of a seed that has never run.

        Raises:
            StageError: the seed cannot be blended now, or a gate refuses it: it has not run, say.
            ValueError: the target, the number of steps or the schedule is invalid.
        """
        self._allow("blend")
        seed = self._find(seed)
        if seed.stage is Stage.DORMANT:
            return self._reporter.operation("blend", seed, disabled=True)
        course = self._acts.course(seed)
        stage_after(course.stage, "blend", seed.name)
        ramp = Ramp(course.alphas, to, steps, schedules.resolve(schedule), warmup)
        self._pass_gate("blend", course.judged(), force)
        told = partial(self._reporter.blend, seed, ramp.target, steps, str(schedule))
        if self._acts.open is not None:
            return self._acts.open.blend(seed, ramp, told)
        self._background.leave_open(seed)
        told()
        return self._lifecycle.begin_blend(seed, ramp)

    @uninterruptible
    def cull(self, seed: Seed | str, *, wait: bool = True) -> None:
        """Take a seed out: graph, parameters, optimizer state and hooks. It cannot come back.

        Args:
            seed: a live one, or one in preparation.
            wait: False takes effect at once as well, through alpha 0 and out of the optimizers; its
                graft leaves the graph at a later `step`, when a compiled host has the code for that.

        Raises:
            StageError: the seed is a fossil, or gone.
        """
        self._allow("cull")
        seed = self._find(seed)
        if seed.stage is Stage.DORMANT:
            del self._seeds[seed.name]
            return self._reporter.operation("cull", seed, disabled=True)
        if self._acts.open is not None:
            self._plan_cull(seed, wait)
            return None
        self._background.cancel(seed)
        if wait:
            self._lifecycle.cull(seed)
        else:
            self._lifecycle.retire(seed)
        self._memory.refuses_until[seed.slot] = self._reporter.step + self._cooldown
        return None

    @uninterruptible
    def fossilize(self, seed: Seed | str, *, wait: bool = True, force: bool = False) -> None:
        """Make a seed a plain part of the host, at the alpha that it holds.

        Args:
            seed: a HOLDING one; or, where it is not isolated, one in TRAINING or BLENDING, which goes to the
                target of its blend (1 without one) at once, as by ``blend(steps=0)``.
            wait: False leaves it HOLDING until a later `step`, when a compiled host has the code; a `blend`
                before that takes the wish back.
            force: from TRAINING and BLENDING also where it is isolated; and whatever the gates say, also of a
                seed that has never run.

        Raises:
            StageError: the seed is in another stage, isolated without ``force``, or a gate refuses it: it has
                not run, say.
        """
        self._allow("fossilize")
        seed = self._find(seed)
        if seed.stage is Stage.DORMANT:
            return self._reporter.operation("fossilize", seed, disabled=True)
        validate.boolean("force", force)
        course = self._acts.course(seed)
        ramp = at_once(course, force)
        told = None
        if ramp is not None:
            course = replace(course, stage=Stage.HOLDING, alphas=ramp.alphas(0), ramp=ramp)
            told = partial(self._reporter.blend, seed, ramp.target, 0, "linear")
        self._pass_gate("fossilize", course.judged(), force)
        if (act := self._acts.open) is not None:
            if ramp is not None and told is not None:
                act.blend(seed, ramp, told)
            act.fossilize(seed)
            act.waits &= wait
            return None
        if told is not None:
            told()
        if wait:
            self._background.leave_open(seed)
            return self._lifecycle.fossilize(seed, ramp)
        if ramp is not None:
            self._lifecycle.begin_blend(seed, ramp)
        return self._background.fossilize(seed)

    @uninterruptible
    def widen(
        self,
        group: str | ChannelGroup,
        by: int,
        *,
        init: str = "zero",
        optimizer_state: str = "fresh",
        wait: bool = True,
    ) -> Widening:
        """Let a group of channels grow: the host is a wider network from then on, and computes the same.

        Each parameter stays the same object, with what optimizers keep for it, its hooks and its gradient;
        averages that follow (`fxgraft.averaging.follow`) grow along. That the outputs are those of before is
        checked on copies, with the example of the trace, before anything is changed. The host is traced anew.
        The model that it was traced from shares the parameters, and does not run any more.

        Args:
            group: one of ``host.channels``, or its name.
            by: how many channels more: a multiple of the group's grain.
            init: ``"zero"``: what makes the new channels begins as the layer initialises it, what reads them
                is zero. Where a layer norm or RMSNorm is computed over them, the new ones begin as the mean
                of the others, or zero, the norm makes up for them, and what reads them begins as the layer
                initialises it. The function is kept to the bit where the matrix product keeps the bits of a
                sum with zeros in it, and within rounding otherwise. ``"split"``: copies of old ones, among
                which what reads them is shared in parts not quite equal (Net2Wider); within rounding.
            optimizer_state: of the new entries: ``"fresh"`` begins at zero; ``"copy"`` as that of the entries
                that they are made like. Old entries keep theirs.
            wait: True. A compiled host compiles at its next call; this is not done in the background yet.

        Returns:
            What was done; ``max_abs`` is the largest difference of the outputs on the example.

        Raises:
            ChannelError: there is no such group, it cannot grow, or not by this; or the outputs would differ.
                The host and the optimizers are as before, to the bit.
            DistributedError: the host is under ``DistributedDataParallel`` or sharded.
            StageError: a seed is in preparation.
            ValueError: for an unknown ``init`` or ``optimizer_state``.
        """
        self._allow("widen")
        if torch.is_inference_mode_enabled():
            raise StageError("cannot widen in torch.inference_mode(): what is made there cannot be trained")
        self._acts.refuse("widen")
        if not wait:
            raise ChannelError(
                "wait: expected True: widening is not prepared in the background; a compiled host compiles "
                "at its "
                "next call"
            )
        self._refuse_ranks("widen")
        if len(self._background):
            raise StageError("cannot widen while a seed is in preparation: do it once that has gone live")
        key = streams.key_of(self._memory.run_seed, f"widening {len(self.host.widenings)}")
        done = widen(self.host, group, by, init, optimizer_state, self._optimizers, key)
        self._reporter.emit("widened", **asdict(done))
        return done

    @uninterruptible
    def fuse(self, *seeds: Seed | str) -> Mapping[str, str]:
        """Make fossils part of the host's own layers: they are gone then, and the host computes the same.

        A linear fossil goes into the weights of the layer in front of it, as `fxgraft.fold` does with a copy.
        A branch (``germinate(slot, module, source=...)``) of the same form as what it stands beside, node by
        node, gives its channels to those layers, with what optimizers keep for them: the host is as wide as
        one by hand. Where no other fossil is left in a region it runs its class's own forward again.

        Biases that both add up become one, which is trained as one from then on; and the counts of steps of
        the optimizer are those of the host's parameters.

        Args:
            *seeds: the fossils; without any, all that can be fused, and those that cannot stay.

        Returns:
            Fossil -> the layer, or the group of channels, that it has become part of.

        Raises:
            StageError: one is no fossil.
            SlotError: one cannot be fused; says why. Nothing is changed.
            ChannelError: the outputs would differ. Nothing is changed.
            DistributedError: the host is under ``DistributedDataParallel`` or sharded.
        """
        self._allow("fuse")
        self._acts.refuse("fuse")
        self._refuse_ranks("fuse")
        fossils = {seed.name for seed in self._seeds.values() if seed.stage is Stage.FOSSILIZED}
        names = [self._find(seed).name for seed in seeds]
        for name in names:
            if name not in fossils:
                stage = self._seeds[name].stage.name
                raise StageError(f"cannot fuse seed {name!r}: it is {stage}, and no fossil")
        found = fuse(self._lifecycle, names or sorted(fossils), self._optimizers, skip=not seeds)
        for name, layer in found.items():
            self._reporter.emit("fused", name, into=layer)
        return MappingProxyType(found)

    @uninterruptible
    def cull_all(self, *, wait: bool = True) -> list[str]:
        """Cull every seed that is live or in preparation, in one change; return their names, latest first.

        The rollback: afterwards the host is what it was, but for its fossils.

        Args:
            wait: False takes effect at once as well, but leaves the grafts in the graph for a later
                `step`, as in `cull`.
        """
        self._allow("cull")
        if self._acts.open is not None:
            staying = [s for s in reversed(self._acts.staying().values()) if not _is_settled(s)]
            for seed in staying:
                self._plan_cull(seed, wait)
            return [seed.name for seed in staying]
        began = time.monotonic()
        there = [s for s in reversed(self._seeds.values()) if s.is_live or s.stage is Stage.GERMINATED]
        for seed in there:
            self._background.cancel(seed)
        if wait:
            self._lifecycle.cull(*there)
        else:
            for seed in there:
                self._lifecycle.retire(seed)
        for seed in there:
            self._memory.refuses_until[seed.slot] = self._reporter.step + self._cooldown
        self._reporter.rollback(there, (time.monotonic() - began) * 1e3)
        return [seed.name for seed in there]

    def together(self, *, wait: bool = True) -> AbstractContextManager[None]:
        """Let what is done inside land as one change at the end of the block, whole or not at all.

        ``germinate``, ``blend``, ``cull``, ``fossilize``, ``pause`` and ``resume`` are checked and planned
        inside; at the end the host gets one other structure, in one swap, compiled once. Until then nothing
        that runs changes: a new seed is GERMINATED, an old one in the stage that it was in. A call inside is
        checked against what those before it lead to (a new seed can be blended); one that raises is not
        planned, and the others are. A name is free for another seed only after the block.

        An exception that leaves the block, or a change that cannot land (an error of a compiler, say),
        leaves everything as it was: the names are free again, and the new seeds are CULLED. A block inside
        of another lands with it; an exception that leaves the inner one takes back what was planned there.

        Args:
            wait: False lets the whole land in the background, at a later `step`, and so does one
                ``wait=False`` inside. Modules are built at their calls all the same.

        Raises:
            StageError: in another thread than the one that trains, or where seeds cannot change.
        """
        self._allow("open manager.together()")
        return self._acts.block(validate.boolean("wait", wait))

    @uninterruptible
    def pause(self, seed: Seed | str) -> None:
        """Let a live seed's ramp and updates stand still. Raises `StageError` if it is not live."""
        self._set_paused(self._find(seed), True)

    @uninterruptible
    def resume(self, seed: Seed | str) -> None:
        """Let a paused seed go on. Raises `StageError` if it is not live."""
        self._set_paused(self._find(seed), False)

    @uninterruptible
    def handle(self, command: Command | Mapping[str, Any] | str | bytes) -> Reply:
        """Carry out one command, as an object, a dictionary or JSON. Never raises: the reply says.

        From another thread than the one that trains it is only taken in: it is carried out at the end of the
        next `step`, and the reply is ``queued``. `submit` gives the final one. On several ranks that is so
        for each command on rank 0, and it is carried out on all; other ranks refuse.
        """
        if self.peers.rank:
            return Reply(False, _FOR_RANK_0)
        is_now = self._inbox.is_here and self.peers.size == 1
        return self._dispatcher.handle(command, None if is_now else self._inbox)

    @uninterruptible
    def carry_out(self, command: Command) -> Reply:
        """As `handle`, but at once and on this rank: for what every rank decides alike."""
        self._inbox.require_here("carry out a command")
        return self._dispatcher.handle(command)

    def submit(self, command: Command | Mapping[str, Any] | str | bytes) -> Future[Reply]:
        """Let a command wait for the end of the next `step`; from any thread.

        Commands are carried out in the order in which they came, each once.

        Returns:
            The reply to come. ``future.cancel()`` takes the command back while it waits. Give
            ``future.result(timeout)`` a timeout: a training that has ended carries nothing out.
        """
        if self.peers.rank:
            refused: Future[Reply] = Future()
            refused.set_result(Reply(False, _FOR_RANK_0))
            return refused
        return self._dispatcher.submit(command, self._inbox)

    @uninterruptible
    def step(self, loss: float | Tensor | None = None) -> None:
        """Advance every seed by one training step; call it once per step, after ``optimizer.step()``.

        Commands of other threads are carried out at its end. The thread that calls it is the training thread.

        Args:
            loss: of this step, for the sinks; a number or a tensor (its mean), which may stay on its device.

        Raises:
            DistributedError: the ranks have drifted apart, or one is gone.
            IsolationError: isolation is violated, and the manager is ``strict``.
            TypeError: ``loss`` is neither; nothing was done.
            StageError: inside `shadow` and the like, or while another thread is inside of it.
        """
        check_loss(loss)
        self._inbox.begin_step()
        try:
            self._refuse_while_borrowed("step")
            self._acts.refuse("step")
            self.peers.settle()
            self._reporter.step += 1
            self._background.step()
            self._lifecycle.advance([seed for seed in self._seeds.values() if not seed.paused])
            self._journal.step(loss)
            if self.host.copies:
                self._reporter.stray_copies(self.host.copies.stray(self.host))
            self.monitor.step(self._seeds.values())
            for routine in list(self._routines):
                self._advance(routine, loss)
            self._dispatcher.carry_out(self.peers.orders(self._inbox))
        finally:
            self._inbox.end_step()

    # Where to grow

    @uninterruptible
    def explore(
        self,
        candidates: Choice = "auto",
        *,
        evaluate: Evaluate,
        steps: int = 100,
        keep: int = 0,
        blueprints: Sequence[str] | None = None,
        score: str | Score = scoring.DEFAULT,
        at: float = 1.0,
        repeats: int = 1,
        cap: Mapping[str, int] | None = None,
        most: Mapping[str, int] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Exploration:
        """Let many candidates learn in isolation beside the run, measure each alone, and rank them.

        They germinate now, in one act, several at one slot where several fit there. ``manager.step()`` drives
        the rest: after ``steps`` of it they are measured and culled. The host does not feel any of it: its
        weights, its optimizer and the random streams are to the bit what they are without. On several ranks
        each calls it.

        Args:
            candidates: ``"auto"``: every slot, with every registered blueprint that fits, and the hidden
                channels between two linear layers, a quarter more of them, as `widen` would, and one more
                block behind each block of a stack, as `deepen` would; a selection of
                slots (``host.slots.select(...)``, a name, several names), likewise; or SEED commands (or
                dictionaries).
            evaluate: computes a loss of the host without arguments, best on held-out data and in eval mode: a
                number, or one for each of several batches (a sequence, a 1-D tensor), from which a standard
                error follows. It is called once now, and once for each candidate at the end. Gradients are
                off inside; lower is better.
            steps: for how many training steps they learn.
            keep: how many of the best stay, in TRAINING; the others are culled.
            blueprints: the names of those to take in the place of all; not where commands are given.
            score: what they are ranked by: one of ``fxgraft.explore.SCORES``, the mean of the ranks by two
                (``"expected_and_parameters"``, ``"expected_and_contribution"``), or a function of a `Row`.
            at: the alpha at which they are measured.
            repeats: how often each evaluation is repeated, for one that draws random numbers.
            cap: how much is tried at once where slots are given: ``{"candidates": 64, "parameters": ...,
                "flops": ..., "memory": ...}``; see `fxgraft.explore.candidates.Cap`.
            most: what one candidate may have: ``{"parameters": ..., "flops": ..., "memory": ...}``.
            state: the ``state_dict()`` of an exploration of these candidates that was going on when this
                manager was saved: nothing germinates, it goes on.

        Returns:
            The exploration: ``done``, ``table``, ``best(n)``; print it.

        Raises:
            SlotError, BlueprintError, CommandError: what was named is not there, or can never grow there.
            TypeError: ``candidates`` or ``evaluate`` is something else, or ``evaluate`` returns no numbers.
            ValueError: an invalid number, a loss that is not finite, or nothing that could grow.
            StageError: seeds cannot change now.
        """
        self._allow("explore")
        self._acts.refuse("explore")
        settings = explore.Settings(
            validate.integer("steps", steps, 1),
            validate.integer("keep", keep),
            validate.number("at", at, 0, 1),
            validate.integer("repeats", repeats, 1),
        )
        by = scoring.resolve(score)
        bare = check(self.host, evaluate)
        alone = self.peers.size == 1 and self.peers.folder is None  # else the host cannot grow wider
        found = find(self.host, candidates, blueprints, cap, bare.flops, most, widens=alone)
        exploration = explore.Exploration(
            self, self._lifecycle, self._reporter, found, evaluate, by, settings
        )
        if state is None:
            exploration.begin()
        else:
            exploration.go_on(state)
        self._routines.insert(0, exploration)  # before the growth that waits for it
        return exploration

    def autogrow(
        self,
        evaluate: Evaluate,
        candidates: Choice = "auto",
        budget: float | Mapping[str, float] = 2.0,
        when: When = "flat",
        *,
        total_steps: int | None = None,
        steps: int = 100,
        blend: int = 50,
        hold: int = 50,
        window: int = 50,
        flat: float = 0.02,
        gain: float = 0.001,
        blueprints: Sequence[str] | None = None,
        score: str | Score = scoring.DEFAULT,
    ) -> Growth:
        """Grow by itself: explore when it is time, keep what helps, until nothing pays any more.

        ``manager.step(loss)`` drives it. The best candidate of an exploration is blended in; where what it
        learnt in isolation does not help, a new one takes its place that adds nothing at first and learns
        with the host. Held for a while it is measured, and becomes a part of the host or is taken out.
        Until its first blend the host is to the bit what it is without. All changes are commands: sinks are
        told each. `save` keeps where it stands: call it again, with the same arguments, after `load`. On
        several ranks each calls it.

        Args:
            evaluate: as for `explore`.
            candidates: as for `explore`.
            budget: what the host may be in the end, as a factor of its parameters at the beginning; or
                ``{"parameters": 2.0, "flops": 1.5}``, FLOPs of a forward pass.
            when: ``"flat"``: again and again when the loss is flat, by what `step` is given, or by
                ``evaluate`` where it is given nothing; a share of the run, or several (0.3, [0.3, 0.6]): once
                at each; or a function of the manager that says whether it is time.
            total_steps: of the run, for shares of it.
            steps: for which candidates learn in isolation.
            blend: steps in which the best is blended in.
            hold: steps for which it is held before it is judged.
            window: the loss is flat where its mean over so many steps fell by less than ``flat``,
            flat: a share of the mean over as many before.
            gain: what it has to contribute to stay, as a share of the loss.
            blueprints: as for `explore`.
            score: as for `explore`.

        Returns:
            The growth: ``done``, ``history``, ``state_dict()``; print it.

        Raises:
            SlotError, BlueprintError, CommandError, TypeError, ValueError: as `explore`, at once.
            StageError: another growth goes on, or seeds cannot change now.
            CheckpointError: the run that was loaded had a growth with other candidates.
        """
        self._allow("autogrow")
        self._acts.refuse("autogrow")
        if any(isinstance(routine, Growth) for routine in self._routines):
            raise StageError("cannot autogrow: another growth of this manager goes on")
        course = Course(explore=steps, blend=blend, hold=hold, window=window, flat=flat, gain=gain)
        growth = Growth(self, evaluate, candidates, budget, when, total_steps, blueprints, score, course)
        if isinstance(self._memory.growth, dict):  # of the run that was loaded
            growth.load_state_dict(self._memory.growth)
        self._memory.growth = growth.state_dict
        if not growth.done:
            self._routines.append(growth)
        return growth

    def carry_out_together(self, orders: Sequence[Command]) -> list[Reply]:
        """As `carry_out`, several in one act; where that cannot land as a whole, one by one."""
        self._inbox.require_here("carry out commands")
        waiting: list[tuple[Command, Future[Reply] | None]] = [(order, Future()) for order in orders]
        self._dispatcher.carry_out(waiting)
        return [future.result(0) for _, future in waiting if future is not None]

    @contextmanager
    def no_cooldown(self) -> Iterator[None]:
        """What is culled inside was only tried: its slots take seeds as before."""
        before = dict(self._memory.refuses_until)
        try:
            yield
        finally:
            self._memory.refuses_until.clear()
            self._memory.refuses_until.update(before)

    # Looking at what a seed does

    def metrics(self) -> dict[str, dict[str, float]]:
        """Metric -> seed -> value, as they stand; see ``fxgraft.telemetry.METRICS`` for units.

        The seed is ``""`` for a metric of the whole. Norms are of the gradients that are there now.
        """
        pending = len(self._background)
        return collect(self.host, self._seeds.values(), self.registry, self._reporter.counters, pending)

    def shadow(self) -> AbstractContextManager[None]:
        """A pass in which TRAINING seeds run at alpha 1 and only they get gradients.

        Run forward *and* backward inside. The host's gradients, buffers and random streams stay.
        """
        self._inbox.require_here("run the seeds otherwise")
        if self.peers.folder is not None:
            raise DistributedError("shadow() is not supported on a sharded host: use objective 'trust'")
        learning = [s.name for s in self._seeds.values() if s.stage is Stage.TRAINING]
        parameters = [p for name in learning for p in self.registry.parameters(name)]
        return shadow_pass(self.host, parameters)

    def at_alpha(self, seed: Seed | str, alpha: float) -> AbstractContextManager[None]:
        """Let one seed run at another alpha inside: to see what it does. Recompiles nothing."""
        self._inbox.require_here("run a seed at another alpha")
        return probing.at_alpha(self.host, self._find(seed), alpha)

    @uninterruptible
    def measure(self, seed: Seed | str, evaluate: Callable[[], float | Tensor], at: float = 1.0) -> float:
        """What a seed contributes: the loss at alpha 0 minus the loss at ``at``, by two evaluations.

        Both draw the same random numbers (for dropout, or in a loader that shuffles), and find the same
        buffers; afterwards streams and buffers are as they were, and the runs are not counted. On several
        ranks it is the mean of theirs, for which all of them call it.

        Args:
            seed: a live one.
            evaluate: computes a loss of the host, which it calls as the example of the trace did; best on
                held-out data and in eval mode, which is put back. Gradients are off inside; lower is better.
            at: the alpha to measure at; a seed that is blended is best measured at its own.

        Returns:
            The contribution, positive where the seed helps. Gates read it from the seed.

        Raises:
            TypeError: ``evaluate`` does not return one number.
            StageError: the seed is not live, or no call in ``evaluate`` ran it.
        """
        self._inbox.require_here("measure a seed")
        seed = self._find(seed)
        contribution = probing.measure(
            self.host, seed, evaluate, at, self.peers.mean, self._lifecycle.inactivity
        )
        if contribution == 0.0 and at > 0:
            logger.warning(
                "seed %r: the loss is the same with it and without, to the bit, though it ran: it gives "
                "nothing yet (it was trained in %s)",
                seed.name,
                pluralize(seed.trained_steps, "step"),
            )
        self._reporter.emit("contribution", seed.name, contribution=contribution, alpha=at)
        return contribution

    def reschedule(self, schedulers: Sequence[Any]) -> None:
        """Keep these learning-rate schedulers in step from now on, in the place of those given before.

        For a training that begins anew with the same optimizers, whose schedulers were made for all their
        groups, those of seeds included.
        """
        self.__dict__["schedulers"] = found = settings.schedulers_of(schedulers)
        self.registry.reschedule(found)
        self._saver.schedulers = found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write structure, weights, lifecycle, optimizers, schedulers and random streams to one file.

        Atomic: a process killed at any moment leaves the old file or the new one. A seed that is still
        in preparation (``wait=False``) is not saved. On several ranks each calls it: rank 0 writes the file,
        the others their random streams beside it, without waiting for each other. Of a sharded host it is a
        folder, in which each rank writes its part; they wait for each other.

        Raises:
            CheckpointError: the file cannot be written, the host has seeds of another manager, or a seed
                blends by a schedule without a name.
        """
        self._inbox.require_here("save")
        self._acts.refuse("save")
        if strange := self._lifecycle.foreign_seeds():
            raise CheckpointError(
                f"{os.fspath(path)}: expected a host with seeds of this manager only; it has {strange} of "
                f"another one, whose save() knows them. fxgraft.trace(fxgraft.unwrap(host), ...) makes "
                f"fossils a part of a new host"
            )
        self._saver.save(path)

    @classmethod
    @uninterruptible
    def load(
        cls,
        path: str | os.PathLike[str],
        host: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        blueprints: Mapping[str, BlueprintLike] | None = None,
        wait: bool = True,
        **options: Any,
    ) -> SeedManager:
        """Go on with a saved run, bit for bit.

        Args:
            path: what `save` wrote.
            host: freshly traced from the same model, without seeds.
            optimizer: new ones of the same kinds and groups as those saved.
            blueprints: for seeds that were germinated from code: seed name -> module or factory.
            wait: False lets a compiled host run uncompiled until a helper process has compiled it.
            **options: as for `SeedManager`; ``schedulers`` new ones of the same kinds.

        Raises:
            CheckpointError: the file is damaged, of another host, or asks for a blueprint that is not
                there. Host and optimizers are as before.
        """
        manager = cls(host, optimizer, **options)
        manager._saver.load(path, {**manager.host.seed_blueprints, **(blueprints or {})}, wait)
        return manager

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _GIVEN_ONCE and "_saver" in self.__dict__:  # the last thing that is made
            raise AttributeError(
                f"{name} of a manager is given when it is made, and only read then: "
                f"SeedManager(..., {name}=...), and load() to go on with a saved run"
            )
        super().__setattr__(name, value)

    # For states that other frameworks write and read

    def describe(self) -> tuple[Tensor, list[str]]:
        """How the seeds are wired, as bytes (1-D, uint8), and the names of those.

        With ``host.structure_entry = lambda host: manager.describe()`` each ``host.state_dict()`` has it in
        the entry ``_seeds._structure``, and a fresh host that loads such a state grows these seeds.

        Raises:
            CheckpointError: a seed blends by a schedule without a name.
        """
        return self._saver.describe()

    @uninterruptible
    def lead(self, entry: Tensor) -> None:
        """Grow and lead the seeds that an entry says; their weights come with ``host.load_state_dict``.

        They join the optimizers as new ones do.

        Args:
            entry: what `describe` made of another manager's seeds. This host has none yet.

        Raises:
            CheckpointError: the entry is damaged, or does not fit the host; or a seed was germinated from
                code, and is not in ``host.seed_blueprints``.
        """
        self._allow("lead other seeds")
        if self.host.structure.placements:
            raise CheckpointError("expected a host without seeds; this one has seeds already")
        self._saver.lead(entry)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a SeedManager leads one run, and is neither copied nor pickled: save() and load() take the run "
            "elsewhere; copy.deepcopy(manager.host) copies the host with its seeds"
        )

    # Inside

    def _state(self) -> str:
        """What has to be the same on all ranks, as text."""
        lines = [f"  step {self._reporter.step}"]
        for seed in self._seeds.values():
            paused = ", paused" if seed.paused else ""
            source = f" from {seed.source}" if seed.source else ""
            lines.append(
                f"  {seed.name}: {seed.blueprint} at {seed.slot}{source}, {seed.spec.mode}, "
                f"{seed.stage.name} at alpha {seed.alpha!r}{paused}"
            )
        return "\n".join(lines if self._seeds else [*lines, "  no seeds"])

    def _allow(self, action: str) -> None:
        """Raise `StageError` where seeds cannot change: in another thread, or while the host is borrowed."""
        self._inbox.require_here(action)
        self._acts.refuse_threads()
        self._refuse_while_borrowed(action)

    def _refuse_ranks(self, action: str) -> None:
        if self.peers.size > 1 or self.peers.folder is not None or is_wrapped(self.host):
            raise DistributedError(
                f"cannot {action} a host that several ranks train, or that is wrapped for them: save the "
                "run, "
                f"load it in one process, {action}, save; for all ranks, host = fxgraft.load_model(path, "
                "model); "
                f"host.clear(); then wrap that, and SeedManager.load(path, ...)"
            )

    def _refuse_while_borrowed(self, action: str) -> None:
        if self.host.borrowed:
            raise StageError(f"cannot {action} inside {self.host.borrowed}: do it afterwards")

    def _advance(self, routine: Routine, loss: float | Tensor | None) -> None:
        """One step of what goes on beside the training; what ends, or raises, goes on no more."""
        try:
            routine.step(loss)
        except BaseException:
            self._routines.remove(routine)
            raise
        if routine.done:
            self._routines.remove(routine)

    def _pass_gate(self, action: str, seed: Seed, force: bool) -> None:
        validate.boolean("force", force)
        gate = self._gates.get(action)
        if gate is None:
            return
        verdict = gate(seed)
        self._reporter.gate(seed, action, verdict)
        if not verdict and not force:
            raise StageError(f"cannot {action} seed {seed.name!r}: {verdict.reason}")

    def _set_paused(self, seed: Seed, paused: bool) -> None:
        self._inbox.require_here("pause" if paused else "resume")
        if seed.stage is Stage.DORMANT:
            return self._reporter.operation("pause" if paused else "resume", seed, disabled=True)
        stage = self._acts.course(seed).stage
        if stage not in (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING):
            raise StageError(f"cannot pause or resume seed {seed.name!r}: it is {stage.name}")
        told = partial(self._reporter.operation, "pause" if paused else "resume", seed)
        if self._acts.open is not None:
            return self._acts.open.pause(seed, paused, told)
        self._lifecycle.pause(seed, paused)
        return told()

    def _plan_germination(
        self, seed: Seed, slot: Slot, module: nn.Module, follower: str | None, began: float
    ) -> None:
        """Into the open act: the seed is among the others from now on."""
        act = self._acts.open
        assert act is not None
        birth = self._lifecycle.plan_birth(seed, slot, module, follower)
        act.germinate(birth, partial(self._tell_birth, seed, began, act))
        self._lifecycle.enlist(seed, birth.before)

    def _tell_birth(self, seed: Seed, began: float, act: Act) -> None:
        self._reporter.live_after((time.monotonic() - began) * 1e3, seed, prefetched=not act.waits)

    def _plan_cull(self, seed: Seed, wait: bool) -> None:
        assert self._acts.open is not None
        self._acts.open.cull(seed)
        self._acts.open.waits &= wait
        self._memory.refuses_until[seed.slot] = self._reporter.step + self._cooldown

    def _name(self, name: str | None, blueprint: BlueprintLike) -> str:
        if name is None:
            return self._memory.names.make(nursery.label(blueprint), self._taken())
        check_name(name)
        if name in self._seeds:
            raise StageError(f"there is a seed {name!r} already: {self._seeds[name]!r}")
        if name in self._lifecycle.departing:
            raise StageError(
                f"the graft of culled seed {name!r} is still in the graph; it leaves at a later step()"
            )
        self._memory.names.note(name)
        return name

    def _taken(self) -> set[str]:
        """The names that no new seed can have; those of another manager's seeds in the host among them."""
        return {*self._seeds, *(placement.seed for placement in self.host.structure.placements)}

    def _find(self, seed: Seed | str) -> Seed:
        known = self._seeds.get(seed.name if isinstance(seed, Seed) else seed)
        if isinstance(seed, Seed) and known is not seed:
            known = seed if seed.stage is Stage.CULLED else None  # whose stage refuses everything
        if known is None:
            raise StageError(f"no seed {seed!r} here; there are: {', '.join(self._seeds) or 'none'}")
        return known

    def _on_violations(self, found: list[Violation]) -> None:
        self._reporter.violations(found, [seed for seed in self._seeds.values() if seed.is_live])

    def _on_stage(self, seed: Seed) -> None:
        self.monitor.follow(self._seeds.values())
        if seed.stage is not Stage.GERMINATED:  # which changes nothing that runs
            # What lands in the background comes at a step of its own choice: that one stays ordinary.
            self.monitor.look_soon(LATER if self._background.is_landing else 0)
        self._reporter.stage(seed)


class Routine(Protocol):
    """What goes on beside the training: an exploration, say."""

    @property
    def done(self) -> bool:
        """Whether it is over."""

    def step(self, loss: float | Tensor | None) -> None:
        """One training step is over."""


_GIVEN_ONCE = frozenset(inspect.signature(SeedManager).parameters) - {"enabled"}


def _separate_groups(
    blueprint: BlueprintLike, groups: Groups | None, config: dict[str, Any]
) -> tuple[Groups | None, dict[str, Any]]:
    """A number of groups (of a convolution, a norm) is for the blueprint that has such an option."""
    if isinstance(groups, int) and nursery.has_option(blueprint, "groups"):
        return None, {**config, "groups": groups}
    return groups, config


def _is_settled(seed: Seed) -> bool:
    return seed.stage in (Stage.DORMANT, Stage.FOSSILIZED)


def _spec(slot: Slot, mode: str | None, objective: str | Objective, isolated: bool) -> GraftSpec:
    law = objective if isinstance(objective, Objective) else Objective(objective)
    copy_source = slot.input.copy and slot.source is not None
    return GraftSpec(mode or "residual", law.name, law.radius, isolated, slot.copy, copy_source=copy_source)
