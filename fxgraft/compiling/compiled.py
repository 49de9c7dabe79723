"""A host under ``torch.compile``: which compiled code runs each of its units now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.compiling.calls import CallKind, glance, merge
from fxgraft.compiling.job import Task
from fxgraft.compiling.units import Unit, units_of
from fxgraft.compiling.variants import Variant, Variants, enter, touch
from fxgraft.structure import Structure
from fxgraft_passes import Graft, Phase
from fxgraft_passes.untouched import untouched

MAX_KINDS = 8
"""For how many kinds of call (the latest) a new structure is compiled before it is live."""

_COMPILED_CALL = "_compiled_call_impl"
"""Where nn.Module looks for a compiled form of itself (``nn.Module.compile``)."""


class CompiledHost:
    """The compiled form of a host.

    Args:
        root: the traced model.
        options: of ``torch.compile``; ``fullgraph`` is True unless it is given.
        granularity: ``"host"``, ``"region"`` or ``"auto"``, see `fxgraft.compiling.units`.

    Attributes:
        news: counts what may give the helper something to do: units that run other code than before,
            calls that had to run uncompiled.
    """

    def __init__(self, root: nn.Module, options: Mapping[str, Any], granularity: str):
        self.options = {"fullgraph": True, **options}
        self.units = units_of(root, granularity)
        self.variants = Variants(self.options)
        self._root = root
        self._running: dict[Unit, tuple[Structure, Phase]] = {}
        self.news = 0

    # What runs

    def run(self, structure: Structure, phases: Mapping[Unit, Phase]) -> Callable[..., Any]:
        """Let units run their parts of ``structure``, each in its phase; return what calls the host."""
        self.news += 1
        for unit, phase in phases.items():
            local = unit.local(structure)
            self._running[unit] = local, phase
            call = self._caller(unit, self.variant(unit, local, phase))
            if not unit.name:
                return call
            unit.module.__dict__[_COMPILED_CALL] = call
        return self._root

    def stop(self) -> None:
        """Let every unit run eager."""
        for unit in self.units:
            unit.module.__dict__.pop(_COMPILED_CALL, None)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let every unit run eager inside."""
        calls = [unit.module.__dict__.get(_COMPILED_CALL) for unit in self.units]
        self.stop()
        try:
            yield
        finally:
            for unit, call in zip(self.units, calls, strict=True):
                if call is not None:
                    unit.module.__dict__[_COMPILED_CALL] = call

    def variant(self, unit: Unit, local: Structure, phase: Phase) -> Variant:
        """The variant that runs a unit's part of a structure in one phase."""
        return self.variants.get(
            (unit.kind, local.key, phase), lambda: f"{unit.name or 'host'} {_label(local)} {phase.value}"
        )

    def _caller(self, unit: Unit, variant: Variant) -> Callable[..., Any]:
        module, known = unit.module, variant.known.setdefault(unit, {})

        def call(*args: Any, **kwargs: Any) -> Any:
            # In front of every step of a compiled host: nothing but a look at the arguments' forms.
            form = glance(module, args, kwargs)
            entry = known.get(form) if form is not None else None
            if entry is None:
                entry = self._resolve(unit, variant, form, args, kwargs)
            return entry(module, *args, **kwargs)

        return call

    def _resolve(self, unit: Unit, variant: Variant, form: object, args: Any, kwargs: Any) -> Any:
        kind = CallKind.of(unit.module, args, kwargs)
        if kind is not None:
            touch(self.variants.seen(unit), kind, None, MAX_KINDS)
        entry = variant.find(kind, unit.module, args, kwargs)
        if entry is None:
            self.news += 1
            return enter
        if form is not None:
            variant.known[unit][form] = entry
        return entry

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

    def is_there(self, unit: Unit, local: Structure, phase: Phase) -> bool:
        """Whether there is code for every call that was seen."""
        variant = self.variants.peek((unit.kind, local.key, phase))
        return variant is not None and not variant.given_up and not self.missing(unit, local, phase)

    def missing(self, unit: Unit, local: Structure, phase: Phase) -> list[CallKind]:
        """The kinds of call seen that there is no code for, the latest first."""
        variant = self.variants.peek((unit.kind, local.key, phase))
        seen = reversed(self.variants.seen(unit))
        return [kind for kind in seen if variant is None or not variant.is_ready(kind)]

    def touched(self, *structures: Structure) -> list[Unit]:
        """The units that have a graft in one of the structures."""
        regions = [region for structure in structures for region in structure.by_region]
        return [unit for unit in self.units if any(map(unit.holds, regions))]

    # What the helper is to make

    def tasks_for(self, structure: Structure, before: Structure) -> list[Task]:
        """What is missing for ``structure`` in the units where it is not ``before``; urgent ones first."""
        tasks = []
        for unit in self.touched(structure, before):
            local = unit.local(structure)
            for phase in local.phases:
                tasks += self._tasks(unit, local, phase, self.missing(unit, local, phase))
        tasks = _distinct(tasks)
        if not any(task.kind.trains for task in tasks):
            return tasks
        # Calls of the training loop first: the structure is live when there is code for those.
        tasks = [replace(task, is_required=task.kind.trains) for task in tasks]
        return sorted(tasks, key=lambda task: not task.is_required)

    def tasks_wanted(self) -> list[Task]:
        """What calls of late had to do without."""
        tasks = []
        for unit, (local, phase) in self._running.items():
            variant = self.variants.peek((unit.kind, local.key, phase))
            if variant is not None and variant.wanted:
                tasks += self._tasks(
                    unit, local, phase, [*variant.wanted, *(k for k, _ in variant.artifacts)]
                )
        return _distinct(tasks)

    def tasks_settled(self, structure: Structure, grafts: Mapping[str, Graft]) -> list[Task]:
        """The forwards that save the objectives, for units of several seeds none of which learns now."""
        tasks = []
        for unit in self.touched(structure):
            local = unit.local(structure)
            live = [grafts[p.seed] for p in local.placements if p.spec.fossil is None]
            if len(live) > 1 and not any(bool(graft.learning) for graft in live):
                missing = self.missing(unit, local, Phase.SETTLED)
                tasks += self._tasks(unit, local, Phase.SETTLED, missing)
        return [replace(task, is_extra=True) for task in _distinct(tasks) if not task.variant.given_up]

    def _tasks(self, unit: Unit, local: Structure, phase: Phase, kinds: Iterable[CallKind]) -> list[Task]:
        variant = self.variant(unit, local, phase)
        kinds = list(kinds) if self.options.get("dynamic") is False else merge(kinds)
        fresh = [kind for kind in kinds if all(kind != made for made, _ in variant.artifacts)]
        return [Task(unit, variant, phase, kind) for kind in fresh]

    def expect_help(self, structure: Structure) -> None:
        """Let calls of ``structure`` run uncompiled until there is code of the helper for them."""
        for unit in self.touched(structure):
            local = unit.local(structure)
            for phase in local.phases:
                self.variant(unit, local, phase).helped = True

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
            with untouched(self._root, *others), kind.made_up(unit.module, *others) as (args, kwargs):
                enter(unit.module, *args, **kwargs)


def _call(variant: Variant, module: nn.Module, kind: CallKind, *others: nn.Module) -> None:
    """Run forward, and backward where gradients are enabled, in a call of that kind."""
    with kind.made_up(module, *others) as (args, kwargs):
        out = variant.entry(module, *args, **kwargs)
    learned = [p for m in (module, *others) for p in m.parameters() if p.requires_grad]
    outputs = [o for o in pytree.tree_leaves(out) if isinstance(o, Tensor) and o.requires_grad]
    if kind.grad and outputs and learned:
        zeros = [torch.zeros_like(o) for o in outputs]
        torch.autograd.grad(outputs, learned, zeros, allow_unused=True)


def _distinct(tasks: Iterable[Task]) -> list[Task]:
    """One task for each piece of code: equal units share it."""
    return list({(task.variant, task.phase, task.kind): task for task in tasks}.values())


def _label(local: Structure) -> str:
    seeds = [f"{p.seed}@{p.slot.name}" for p in local.placements]
    return "+".join(seeds) or "empty"
