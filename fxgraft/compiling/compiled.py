"""A host under ``torch.compile``: which compiled code runs each of its units now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.capture.fingerprint import FingerprintFacts
from fxgraft.capture.region import Region
from fxgraft.compiling.artifacts import Entry
from fxgraft.compiling.calls import CallKind, call_key, merge
from fxgraft.compiling.job import CompileTask
from fxgraft.compiling.keys import Keys
from fxgraft.compiling.trials import Trials
from fxgraft.compiling.units import Unit, units_in, units_of
from fxgraft.compiling.variants import MAX_FORMS, Variant, Variants, enter
from fxgraft.slots.structure import Placement, Structure
from fxgraft.util import _torch
from fxgraft_passes import Graft, Phase
from fxgraft_passes.observe import KEY
from fxgraft_passes.untouched import untouched

logger = logging.getLogger("fxgraft")

MAX_CHANGES = 4
"""In how many calls in a row what compiled code takes for granted may change."""

_COMPILED_CALL = "_compiled_call_impl"
"""Where nn.Module looks for a compiled form of itself (``nn.Module.compile``)."""


@dataclass
class _State:
    """What runs a unit now."""

    unit: Unit
    local: Structure
    phase: Phase
    grafts: list[Graft]
    variant: Variant
    known: dict[object, Entry]
    numbers_vary: bool = False


class CompiledHost:
    """The compiled form of a host.

    Args:
        root: the traced model.
        options: of ``torch.compile``; ``fullgraph`` is True unless it is given.
        granularity: ``"host"``, ``"region"`` or ``"auto"``, see `fxgraft.compiling.units`.
        regions: of the model, by name.

    Attributes:
        given, granularity: as they were given.
        news: counts what may give the helper something to do: units that run other code than before,
            calls that had to run uncompiled.
        promise: lets the compiler process make what no call needs yet; returns False where it cannot.
    """

    def __init__(
        self, root: nn.Module, options: Mapping[str, Any], granularity: str, regions: Mapping[str, Region]
    ):
        self.given, self.granularity = options, granularity
        self.options = {"fullgraph": True, **options}
        self.variants = Variants(self.options)
        self._root = root
        self._blocks = units_of(root, granularity)
        self._kinds = {unit.kind for unit in self._blocks}
        self._grown: dict[str, tuple[nn.Module, list[Unit]]] = {}
        self._keys = Keys(self._blocks, regions)
        self._regions = regions
        self._trials = Trials(self.options)
        self._running: dict[Unit, _State] = {}
        self._is_inside = False
        self._has_seeds = False
        self._hooks: int | None = None  # `hooks_registered` while nothing but a new hook has to be looked for
        self._calls = self._changes = 0
        self._changed_in = -1  # the number of a call
        self.news = 0
        self.promise: Callable[[Sequence[CompileTask]], bool] = lambda tasks: False

    @property
    def units(self) -> list[Unit]:
        """What is compiled as a whole: the units of the model, then those of seeds between them."""
        return [*self._blocks, *self._units_of_seeds()]

    # What runs

    def run(
        self, structure: Structure, phases: Mapping[Unit, Phase], grafts: Mapping[str, Graft]
    ) -> Callable[..., Any]:
        """Let units run their parts of ``structure``, each in its phase; return what calls the host."""
        self.news += 1
        self._changes = 0
        self._has_seeds, self._hooks = bool(structure.placements), None
        self._let_go(structure)
        self.grow(structure, grafts)
        self._keys.follow({p.seed: grafts[p.seed] for p in structure.placements}, self._units_of_seeds())
        units = set(self.units)
        for unit, phase in phases.items():
            if unit not in units:
                continue  # of a seed that is gone
            local = unit.local(structure)
            variant = self.variant(unit, local, phase)
            inside = [grafts[p.seed] for p in local.placements]
            state = self._running[unit] = _State(unit, local, phase, inside, variant, {})
            self._adopt(state, variant)
            if not unit.name:
                return self._whole(state)
            unit.module.__dict__[_COMPILED_CALL] = self._caller(state)
        return self._by_blocks

    def _adopt(self, state: _State, variant: Variant) -> None:
        state.variant, self._hooks = variant, None
        state.known = variant.known.setdefault(state.unit, {})
        state.numbers_vary = any(kind.numbers_vary for kind in self.variants.seen(state.unit))

    def _let_go(self, structure: Structure) -> None:
        """Forget the units of seeds that are gone."""
        stay = {p.seed for p in structure.placements}
        for name in [name for name in self._grown if name not in stay]:
            for unit in self._grown.pop(name)[1]:
                unit.module.__dict__.pop(_COMPILED_CALL, None)
                self._running.pop(unit, None)
                self.variants.forget(unit)

    def stop(self) -> None:
        """Let every unit run eager."""
        for unit in self.units:
            unit.module.__dict__.pop(_COMPILED_CALL, None)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let every unit run eager inside."""
        calls = [(unit, unit.module.__dict__.get(_COMPILED_CALL)) for unit in self.units]
        self.stop()
        try:
            yield
        finally:
            for unit, call in calls:
                if call is not None:
                    unit.module.__dict__[_COMPILED_CALL] = call

    def variant(self, unit: Unit, local: Structure, phase: Phase) -> Variant:
        """The variant that runs a unit's part of a structure in one phase."""
        key = self._keys.of(unit, local, phase)
        return self.variants.get(key, lambda: f"{unit.name or 'host'} {_label(local)} {phase.value}")

    def _peek(self, unit: Unit, local: Structure, phase: Phase) -> Variant | None:
        return self.variants.peek(self._keys.of(unit, local, phase))

    def _whole(self, state: _State) -> Callable[..., Any]:
        call, root = self._caller(state), self._root

        def call_host(*args: Any, **kwargs: Any) -> Any:
            if self._hooks != _torch.hooks_registered() and not self._look():
                return root(*args, **kwargs)
            return call(*args, **kwargs)

        return call_host

    def _by_blocks(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, whose blocks are compiled."""
        if self._is_inside:
            return self._root(*args, **kwargs)
        if not self._look():
            with self.stopped():
                return self._root(*args, **kwargs)
        self._is_inside = True
        try:
            return self._root(*args, **kwargs)
        finally:
            self._is_inside = False

    def _caller(self, state: _State) -> Callable[..., Any]:
        module, is_block = state.unit.module, bool(state.unit.name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if is_block and not self._is_inside and not self._look():  # somebody calls the block by itself
                return enter(module, *args, **kwargs)
            # In front of every step of a compiled host: nothing but a look at the arguments' forms.
            form = call_key(module, args, kwargs, state.numbers_vary)
            entry = state.known.get(form) if form is not None else None
            if entry is None:
                entry = self._resolve(state, form, args, kwargs)
            return entry(module, *args, **kwargs)

        return call

    def _resolve(self, state: _State, form: object, args: Any, kwargs: Any) -> Entry:
        """Find what runs a call, and remember it where that needs no more thought."""
        unit = state.unit
        kind = CallKind.of(unit.module, args, kwargs)
        if kind is not None:
            kind = self.variants.see(unit, kind)
            state.numbers_vary |= kind.numbers_vary
            state.variant.await_promised(kind)
        found = state.variant.find(kind, unit.module, args, kwargs)
        if found is None and kind is not None and state.variant.is_made_for(kind):
            found = self._made_for_others(state, kind, args, kwargs)
        if found is None:
            self.news += 1
            return enter
        source, entry = found[0], self._careful(state, found[1])
        if source is not None:
            self._hooks = None
        modules = (unit.module, *state.grafts)
        if (trial := self._trials.pending(state.variant, source, kind, modules)) is not None:
            return self._trials.on_trial(state.variant, trial, entry, modules)
        if source is None and unit not in state.variant.entered:
            return self._first(state, entry)
        if form is not None:
            if len(state.known) >= MAX_FORMS:
                state.known.clear()
            state.known[form] = entry
        return entry

    def _made_for_others(self, state: _State, kind: CallKind, args: Any, kwargs: Any) -> Any:
        """There is code for such calls, and it does not fit this unit: it read some value in it."""
        before = self._keys.of(state.unit, state.local, state.phase)
        self._keys.renew(always=True)
        key = self._keys.of(state.unit, state.local, state.phase)
        if key == before and len(state.variant.values) == 1:
            logger.warning(
                "%s: the helper's code does not fit what calls it; it compiles here", state.variant.label
            )
            state.variant.leave_to_dynamo(kind)
        else:
            self.variants.tell_apart(key)
            self._follow(state)
        return state.variant.find(kind, state.unit.module, args, kwargs)

    def _first(self, state: _State, entry: Entry) -> Entry:
        """The first call of a unit by code that dynamo made for another: does that read values in it?"""
        variant = state.variant
        others = bool(variant.entered)
        variant.entered.add(state.unit)

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            before = variant.graphs
            out = entry(module, *args, **kwargs)
            if others and len(variant.values) > 1 and variant.graphs > before:
                key = self._keys.of(state.unit, state.local, state.phase)
                self.variants.tell_apart(key)
                variant.values[key.values] = None  # its code is there now
            return out

        return call

    def _careful(self, state: _State, entry: Entry) -> Entry:
        """``entry``, or eager mode where something was changed into what does not compile."""
        variant = state.variant
        if not variant.is_late:
            return entry

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            try:
                return entry(module, *args, **kwargs)
            except _torch.dynamo_errors() as error:
                variant.distrusted = f"it does not compile: {type(error).__name__}"
                variant.look_again()
                logger.warning("%s: what was changed in it cannot be compiled: %s", variant.label, error)
                return enter(module, *args, **kwargs)

        return call

    def _look(self) -> bool:
        """Look whether what compiled code takes for granted is still so, and run what is right for it now.

        Returns False where that changes at every call: then the host runs uncompiled.
        """
        if self._hooks == _torch.hooks_registered():
            return True
        self._calls += 1
        if self._keys.hold():
            self._hooks = _torch.hooks_registered() if self._is_as_torch_compiles_it() else None
            return True
        if self._changes >= MAX_CHANGES:
            for state in self._running.values():
                state.variant.misses += 1
            return False
        in_a_row = self._changed_in == self._calls - 1
        self._changes, self._changed_in = self._changes + 1 if in_a_row else 1, self._calls
        what = self._keys.renew()
        for state in self._running.values():
            self._follow(state)
        if self._changes == MAX_CHANGES:
            logger.warning(
                "what compiled code depends on (%s) has changed in %d calls in a row: the host runs "
                "uncompiled until its structure changes",
                what,
                MAX_CHANGES,
            )
        return True

    def _is_as_torch_compiles_it(self) -> bool:
        """Whether torch's own guards, inside the compiled code, see all changes but that of a new hook.

        So it is without seeds, where dynamo made the code: looking costs up to 2 % of a step then.
        """
        return not (
            self._has_seeds
            or self._keys.have_hooks()
            or any(state.variant.artifacts for state in self._running.values())
        )

    def _follow(self, state: _State) -> None:
        """Let a unit run the variant of its key as that is now."""
        before, variant = state.variant, self.variant(state.unit, state.local, state.phase)
        if variant is not before:
            variant.helped |= before.helped
            variant.is_late |= not (variant.compiled or variant.artifacts)
            self._adopt(state, variant)
            self.news += 1

    # The units of seeds that stand between blocks

    def grow(self, structure: Structure, grafts: Mapping[str, Graft]) -> None:
        """Find the units of seeds that stand between blocks."""
        for placement in structure.placements:
            name, region = placement.seed, structure.home(structure.runs_in(placement))
            if name not in grafts or any(unit.holds(region) for unit in self._blocks):
                continue
            module, known = grafts[name].module, self._grown.get(name)
            if known is None or known[0] is not module:
                self._grown[name] = module, units_in(name, module, self._kinds)
                for unit in self._grown[name][1]:
                    self._inherit_calls(unit, placement)

    def _units_of_seeds(self) -> list[Unit]:
        return [unit for _, units in self._grown.values() for unit in units]

    @property
    def eager(self) -> tuple[str, ...]:
        """The seeds between blocks that have no modules inside: they run uncompiled."""
        return tuple(seed for seed, (_, units) in self._grown.items() if not units)

    def _inherit_calls(self, unit: Unit, placement: Placement) -> None:
        """A new block will be called as its equals are; while it is isolated, by what needs no gradient."""
        code = self._code(unit)
        is_cut = placement.spec.isolated and placement.spec.fossil is None
        equal = next((block for block in self._blocks if self._code(block) == code), None)
        for kind in self.variants.seen(equal) if equal is not None else ():
            self.variants.see(unit, kind.without_gradients() if is_cut else kind)

    def _code(self, unit: Unit) -> FingerprintFacts:
        return self._keys.of(unit, Structure(), Phase.ISOLATED).code

    # What is ready

    def phase_in(self, unit: Unit, structure: Structure, phase: Phase, grafts: Mapping[str, Graft]) -> Phase:
        """The phase that a unit runs in while the host is in ``phase``.

        A unit whose seeds are all in one stage needs no forward that tells stages apart; SETTLED, for
        several seeds, is an extra one, that is run only where there is code for it.
        """
        local = unit.local(structure)
        live = [grafts[p.seed] for p in local.placements if p.spec.fossil is None]
        if not live:
            return Phase.ISOLATED
        if phase not in (Phase.BLENDED, Phase.SETTLED):
            return phase
        learning = [bool(graft.learning) for graft in live]
        if all(learning):
            return Phase.ISOLATED
        if any(learning) or (len(live) > 1 and not self.is_there(unit, local, Phase.SETTLED)):
            return Phase.BLENDED
        return Phase.SETTLED

    def phases_of(self, unit: Unit, structure: Structure, grafts: Mapping[str, Graft]) -> tuple[Phase, ...]:
        """The forwards that a unit may run from now on: without those for seeds that learn, where none does.

        No seed comes back into TRAINING.
        """
        local = unit.local(structure)
        live = [grafts[p.seed] for p in local.placements if p.spec.fossil is None]
        if not live or any(bool(graft.learning) for graft in live):
            return local.phases
        return tuple(phase for phase in local.phases if phase is not Phase.ISOLATED)

    def is_there(self, unit: Unit, local: Structure, phase: Phase) -> bool:
        """Whether there is code for every call that was seen."""
        variant = self._peek(unit, local, phase)
        return variant is not None and not variant.given_up and not self.missing(unit, local, phase)

    def missing(self, unit: Unit, local: Structure, phase: Phase) -> list[CallKind]:
        """The kinds of call seen that there is no code for, the latest first."""
        variant = self._peek(unit, local, phase)
        seen = reversed(self.variants.seen(unit))
        return [kind for kind in seen if variant is None or not variant.is_ready(kind)]

    def touched(self, *structures: Structure) -> list[Unit]:
        """The units that have a graft in one of the structures, or are one."""
        regions = [structure.home(region) for structure in structures for region in structure.by_region]
        seeds = {placement.seed for structure in structures for placement in structure.placements}
        grown = [unit for seed, (_, units) in self._grown.items() if seed in seeds for unit in units]
        return [*(unit for unit in self._blocks if any(map(unit.holds, regions))), *grown]

    # What the helper is to make

    def tasks_for(
        self, structure: Structure, before: Structure, grafts: Mapping[str, Graft], moves: bool = False
    ) -> list[CompileTask]:
        """What is missing for ``structure`` in the units where it is not ``before``; urgent ones first.

        Args:
            structure: to be prepared.
            before: what runs.
            grafts: the seeds' of ``structure``, in the stages in which it goes live.
            moves: whether stages change as it goes live: then it is not known which forward runs first.
        """
        self._look()
        self.grow(structure, grafts)
        for unit in self.touched(structure):
            if unit in self._units_of_seeds() and not self.variants.seen(unit):
                self.variant(
                    unit, unit.local(structure), Phase.ISOLATED
                ).helped = True  # nobody knows its calls
        return self._missing_in(self.touched(structure, before), structure, grafts, moves)

    def tasks_for_all(self, structure: Structure, grafts: Mapping[str, Graft]) -> list[CompileTask]:
        """What is missing for a structure that runs, in all units; urgent ones first."""
        return self._missing_in(self.units, structure, grafts)

    def _missing_in(
        self, units: Iterable[Unit], structure: Structure, grafts: Mapping[str, Graft], moves: bool = False
    ) -> list[CompileTask]:
        tasks, first = [], set()
        for unit in units:
            local = unit.local(structure)
            runs_first = self.phase_in(unit, structure, Phase.BLENDED, grafts)
            for phase in local.phases if moves else self.phases_of(unit, structure, grafts):
                found = self._tasks(unit, local, phase, self.missing(unit, local, phase))
                tasks += found
                first |= {(task.variant, task.kind) for task in found if moves or phase is runs_first}
        return _by_urgency(_distinct(tasks), first)

    def inherit_calls(self, other: CompiledHost) -> None:
        """The units will be called as those of the same names in another form of the host, in other sizes.

        Where units are blocks, what they are given may be of another size: that is read off their graphs.
        """
        known = {unit.name: unit for unit in other.units}
        for unit in self.units:
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
        seen = [node.meta.get(KEY) for node in found]
        return [tuple(value.shape) for value in seen if value is not None and value.kind == "Tensor"]

    def tasks_wanted(self) -> list[CompileTask]:
        """What calls of late had to do without."""
        self._look()
        tasks = []
        for state in self._running.values():
            if wanted := state.variant.wanted:
                kinds = [*wanted, *(kind for kind, _ in state.variant.artifacts)]
                tasks += self._tasks(state.unit, state.local, state.phase, kinds)
        return _distinct(tasks)

    def tasks_settled(self, structure: Structure, grafts: Mapping[str, Graft]) -> list[CompileTask]:
        """The forwards that save the objectives, for units of several seeds none of which learns now."""
        self._look()
        tasks = []
        for unit in self.touched(structure):
            local = unit.local(structure)
            live = [grafts[p.seed] for p in local.placements if p.spec.fossil is None]
            if len(live) > 1 and not any(bool(graft.learning) for graft in live):
                missing = self.missing(unit, local, Phase.SETTLED)
                tasks += self._tasks(unit, local, Phase.SETTLED, missing)
        return [replace(task, is_extra=True) for task in _distinct(tasks) if not task.variant.given_up]

    def _tasks(
        self, unit: Unit, local: Structure, phase: Phase, kinds: Iterable[CallKind]
    ) -> list[CompileTask]:
        variant = self.variant(unit, local, phase)
        kinds = list(kinds) if self.options.get("dynamic") is False else merge(kinds)
        fresh = [kind for kind in kinds if all(kind != made for made, _ in variant.artifacts)]
        return [CompileTask(unit, variant, phase, kind) for kind in fresh]

    def expect_help(self, structure: Structure) -> None:
        """Let calls of ``structure`` run uncompiled until there is code of the helper for them."""
        for unit in self.touched(structure):
            local = unit.local(structure)
            for phase in local.phases:
                self.variant(unit, local, phase).helped = True

    def leave_to_helper(self, forwards: Sequence[tuple[Unit, Structure, Phase]]) -> bool:
        """Let the compiler process make these forwards, which no call needs yet; False where it cannot.

        With other backends than Inductor there is little to compile, or something of the user's own.
        """
        if self.options.get("backend", "inductor") != "inductor" or self.options["fullgraph"] is not True:
            return False
        tasks = _distinct(task for part in forwards for task in self._tasks(*part, self.missing(*part)))
        return bool(tasks) and self.promise(tasks)

    def serves(self, task: CompileTask, structure: Structure) -> bool:
        """Whether what a task makes is for ``structure``."""
        local = task.unit.local(structure)
        return self._peek(task.unit, local, task.phase) is task.variant

    def warm_up(self, unit: Unit, local: Structure, phase: Phase, *others: nn.Module) -> None:
        """Compile the variant that is installed now for every kind of call that was seen before.

        Forward and backward run on made-up inputs; weights, gradients, buffers and random streams
        are left alone.
        """
        variant = self.variant(unit, local, phase)
        for kind in self.missing(unit, local, phase):
            with untouched(self._root, *others):
                _call(variant, unit.module, kind, *others)
            variant.leave_to_dynamo(kind)

    def repeat_eagerly(self, unit: Unit, *others: nn.Module) -> None:
        """Run a unit uncompiled on made-up inputs of its latest kind of call; nothing is left of it."""
        for kind in islice(reversed(self.variants.seen(unit)), 1):
            with untouched(self._root, *others), kind.example_call(unit.module, *others) as (args, kwargs):
                enter(unit.module, *args, **kwargs)


def _call(variant: Variant, module: nn.Module, kind: CallKind, *others: nn.Module) -> None:
    """Run forward, and backward where gradients are enabled, in a call of that kind."""
    with kind.example_call(module, *others) as (args, kwargs):
        out = variant.entry(module, *args, **kwargs)
    learned = [p for m in (module, *others) for p in m.parameters() if p.requires_grad]
    outputs = [o for o in pytree.tree_leaves(out) if isinstance(o, Tensor) and o.requires_grad]
    if kind.grad and outputs and learned:
        zeros = [torch.zeros_like(o) for o in outputs]
        torch.autograd.grad(outputs, learned, zeros, allow_unused=True)


def _by_urgency(tasks: list[CompileTask], first: Container[object]) -> list[CompileTask]:
    """Calls of the training loop come first, by what runs ``first``: with code for those it is live."""
    if not any(task.kind.trains for task in tasks):
        return tasks
    tasks = [
        replace(task, is_required=task.kind.trains and (task.variant, task.kind) in first) for task in tasks
    ]
    return sorted(tasks, key=lambda task: (not task.is_required, not task.kind.trains))


def _distinct(tasks: Iterable[CompileTask]) -> list[CompileTask]:
    """One task for each piece of code: equal units share it."""
    return list({(task.variant, task.phase, task.kind): task for task in tasks}.values())


def _label(local: Structure) -> str:
    seeds = [f"{p.seed}@{p.slot.name}" for p in local.placements]
    return "+".join(seeds) or "empty"
