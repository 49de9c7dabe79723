"""A host under ``torch.compile``: its units, the code that runs each, and what it lacks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft import _torch
from fxgraft.capture.identities import FingerprintFacts
from fxgraft.capture.region import Region
from fxgraft.compiling._assumptions import Assumptions
from fxgraft.compiling._calls import CallKind, why_not_again
from fxgraft.compiling._host_units import HostUnits
from fxgraft.compiling._keys import Keys
from fxgraft.compiling._readiness import Readiness
from fxgraft.compiling._running_unit import RunningUnit
from fxgraft.compiling._trials import Trials
from fxgraft.compiling._wanted import WantedCode
from fxgraft.compiling.job import CompileTask
from fxgraft.compiling.units import Unit
from fxgraft.compiling.variants import Variant, Variants, enter
from fxgraft.slots.structure import Placement, Structure
from fxgraft_passes import Graft, Phase
from fxgraft_passes.metadata import metadata
from fxgraft_passes.untouched import untouched

logger = logging.getLogger("fxgraft")


class CompiledHost:
    """The compiled form of a host.

    Args:
        root: the traced model.
        options: of ``torch.compile``; ``fullgraph`` is True unless it is given.
        granularity: ``"host"``, ``"region"`` or ``"auto"``, see `fxgraft.compiling.units`.
        regions: of the model, by name.

    Attributes:
        given, granularity: as they were given.
        units: what is compiled as a whole.
        variants: the code.
        code: which of it runs, and which is there.
        running: the units that run now.
        untraced: calls a function so that no ``torch.compile`` traces it.
        promise: lets the compiler process make what no call needs yet; returns False where it cannot.
    """

    def __init__(
        self, root: nn.Module, options: Mapping[str, Any], granularity: str, regions: Mapping[str, Region]
    ):
        self.given, self.granularity = options, granularity
        self.options = {"fullgraph": True, **options}
        self.variants = Variants(self.options)
        self.units = HostUnits(root, granularity)
        self.running: dict[Unit, RunningUnit] = {}
        self._root = root
        self._keys = Keys(self.units.blocks, regions)
        self._regions = regions
        self._said: dict[str, str] = {}
        self._trials = Trials(self.options)
        self._assumptions = Assumptions(self._keys, self.running)
        self.code = Readiness(self.variants, self._keys)
        self._wanted = WantedCode(self.options, self.units, self.code, self.running)
        # For a torch.compile around the host (of a training step), which is to compile around it only.
        self.untraced: Callable[..., Any] = torch.compiler.disable(  # type: ignore[no-untyped-call]
            _run, reason="the host has compiled code of its own, by host.compile()"
        )
        self.promise: Callable[[Sequence[CompileTask]], bool] = lambda tasks: False

    @property
    def wanted(self) -> WantedCode:
        """What the compiler process is to make, as the modules are now."""
        self._assumptions.look()
        return self._wanted

    @property
    def unprepared(self) -> dict[str, str]:
        """Unit -> why calls of it cannot be generated, where it had such calls."""
        reasons = ((unit.name, why_not_again(unit.module)) for unit in self.units.all)
        return {unit: reason for unit, reason in reasons if reason is not None}

    def tasks_for(
        self, structure: Structure, before: Structure, grafts: Mapping[str, Graft], moves: bool = False
    ) -> list[CompileTask]:
        """What the compiler process is to make for a change: see `WantedCode.for_change`."""
        wanted = self.wanted
        self.grow(structure, grafts)
        return wanted.for_change(structure, before, grafts, moves)

    # What runs

    def run(
        self, structure: Structure, phases: Mapping[Unit, Phase], grafts: Mapping[str, Graft]
    ) -> Callable[..., Any]:
        """Make units run their parts of ``structure``, each in its phase; return what calls the host."""
        self.code.changes += 1
        self._assumptions.begin(bool(structure.placements))
        self._let_go(structure)
        self.grow(structure, grafts)
        self._keys.follow({p.seed: grafts[p.seed] for p in structure.placements}, self.units.of_seeds)
        self._say_what_cannot_be_compiled_for(structure)
        units = set(self.units.all)
        for unit, phase in phases.items():
            if unit not in units:
                continue  # of a seed that is gone
            local = unit.local(structure)
            inside = [grafts[p.seed] for p in local.placements]
            state = RunningUnit(unit, local, phase, inside, self.code, self._assumptions, self._trials)
            self.running[unit] = state
            if not unit.name:
                return self._whole(state)
            unit.module.__dict__[_torch.COMPILED_CALL] = state.caller()
        return self._by_blocks

    def _say_what_cannot_be_compiled_for(self, structure: Structure) -> None:
        """Say once of each unit that grows whether its code cannot be made before it is called."""
        for unit in self.units.touched(structure):
            reason = why_not_again(unit.module)
            if reason is not None and self._said.get(unit.name) != reason:
                self._said[unit.name] = reason
                logger.warning(
                    "%s has calls that cannot be generated (%s): its new code is compiled by the first such "
                    "call, and that step waits for it. To have it compiled before, pass tensors, constants, "
                    "or containers and dataclasses of these",
                    f"block {unit.name!r}" if unit.name else "the host",
                    reason,
                )

    def _let_go(self, structure: Structure) -> None:
        """Forget the units of seeds that are gone."""
        for unit in self.units.forget_all_but({p.seed for p in structure.placements}):
            unit.module.__dict__.pop(_torch.COMPILED_CALL, None)
            self.running.pop(unit, None)
            self.variants.forget(unit)
            self._said.pop(unit.name, None)

    def stop(self) -> None:
        """Make every unit run eager."""
        for unit in self.units.all:
            unit.module.__dict__.pop(_torch.COMPILED_CALL, None)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A context in which every unit runs eager."""
        calls = [(unit, unit.module.__dict__.get(_torch.COMPILED_CALL)) for unit in self.units.all]
        self.stop()
        try:
            yield
        finally:
            for unit, call in calls:
                if call is not None:
                    unit.module.__dict__[_torch.COMPILED_CALL] = call

    def _whole(self, state: RunningUnit) -> Callable[..., Any]:
        call, root, assumptions = state.caller(), self._root, self._assumptions

        def call_host(*args: Any, **kwargs: Any) -> Any:
            if assumptions.hooks != _torch.hooks_registered() and not assumptions.look():
                return root(*args, **kwargs)
            return call(*args, **kwargs)

        return call_host

    def _by_blocks(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, whose blocks are compiled."""
        assumptions = self._assumptions
        if assumptions.is_inside:
            return self._root(*args, **kwargs)
        if not assumptions.look():
            with self.stopped():
                return self._root(*args, **kwargs)
        assumptions.is_inside = True
        try:
            return self._root(*args, **kwargs)
        finally:
            assumptions.is_inside = False

    # The calls that units will have

    def grow(self, structure: Structure, grafts: Mapping[str, Graft]) -> None:
        """Find the units of seeds that stand between blocks."""
        for unit, placement in self.units.grow(structure, grafts):
            self._inherit_calls_of_equal(unit, placement)

    def _inherit_calls_of_equal(self, unit: Unit, placement: Placement) -> None:
        """A new block will be called as its equals are; while it is isolated, by what needs no gradient."""
        code = self._fingerprint(unit)
        is_cut = placement.spec.isolated and placement.spec.fossil is None
        equal = next((block for block in self.units.blocks if self._fingerprint(block) == code), None)
        for kind in self.variants.seen(equal) if equal is not None else ():
            self.variants.see(unit, kind.without_gradients() if is_cut else kind)

    def _fingerprint(self, unit: Unit) -> FingerprintFacts:
        return self._keys.of(unit, Structure(), Phase.ISOLATED).code

    def inherit_calls(self, other: CompiledHost) -> None:
        """The units will be called as those of the same names in another form of the host, in other sizes.

        Where units are blocks, what they are given may be of another size: that is read off their graphs.
        """
        known = {unit.name: unit for unit in other.units.all}
        for unit in self.units.all:
            if (like := known.get(unit.name)) is None:
                continue
            ours, theirs = (form._shapes_of(unit.name) for form in (self, other))
            sizes = {a: b for a, b in zip(theirs, ours, strict=False) if a != b}
            for kind in other.variants.seen(like):
                self.variants.see(unit, kind.resized(sizes))

    def _shapes_of(self, unit: str) -> list[tuple[int, ...]]:
        """The shapes of what a unit was given when the host was traced."""
        region = self._regions.get(unit)
        found = [] if region is None else region.base.find_nodes(op="placeholder")
        seen = [metadata(node).get("observation") for node in found]
        return [tuple(value.shape) for value in seen if value is not None and value.kind == "Tensor"]

    # Before a structure goes live, and what it leaves to the compiler process

    def expect_help(self, structure: Structure) -> None:
        """Run calls of ``structure`` uncompiled until there is code of the helper for them."""
        for unit in self.units.touched(structure):
            local = unit.local(structure)
            for phase in self.code.forwards_of(unit, local):
                self.code.variant(unit, local, phase).helped = True

    def leave_to_helper(self, forwards: Sequence[tuple[Unit, Structure, Phase]]) -> bool:
        """Make these forwards, which no call needs yet, in the compiler process; False where it cannot.

        With other backends than Inductor there is little to compile, or something of the user's own.
        """
        if self.options.get("backend", "inductor") != "inductor" or self.options["fullgraph"] is not True:
            return False
        tasks = self._wanted.of_forwards(forwards)
        return bool(tasks) and self.promise(tasks)

    def serves(self, task: CompileTask, structure: Structure) -> bool:
        """Whether what a task makes is for ``structure``."""
        local = task.unit.local(structure)
        return self.code.peek(task.unit, local, task.phase) is task.variant

    def warm_up(self, unit: Unit, local: Structure, phase: Phase, *others: nn.Module) -> None:
        """Compile the variant that is installed now for every kind of call that was seen before.

        Forward and backward run on generated inputs; weights, gradients, buffers and random streams
        are left alone.
        """
        variant = self.code.variant(unit, local, phase)
        for kind in self.code.missing(unit, local, phase):
            try:
                with untouched(self._root, *others):
                    _call(variant, unit.module, kind, *others)
            except _torch.recompile_limit_errors():
                variant.stop_compiling()
                return
            variant.leave_to_dynamo(kind)

    def repeat_eagerly(self, unit: Unit, *others: nn.Module) -> None:
        """Run a unit uncompiled on generated inputs of its latest kind of call; nothing is left of it."""
        for kind in islice(reversed(self.variants.seen(unit)), 1):
            with untouched(self._root, *others), kind.example_call(unit.module, *others) as (args, kwargs):
                enter(unit.module, *args, **kwargs)


def _run(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return call(*args, **kwargs)


def _call(variant: Variant, module: nn.Module, kind: CallKind, *others: nn.Module) -> None:
    """Run forward, and backward where gradients are enabled, in a call of that kind."""
    with kind.example_call(module, *others) as (args, kwargs):
        out = variant.entry(module, *args, **kwargs)
    learned = [p for m in (module, *others) for p in m.parameters() if p.requires_grad]
    outputs = [o for o in pytree.tree_leaves(out) if isinstance(o, Tensor) and o.requires_grad]
    if kind.grad and outputs and learned:
        zeros = [torch.zeros_like(o) for o in outputs]
        torch.autograd.grad(outputs, learned, zeros, allow_unused=True)
