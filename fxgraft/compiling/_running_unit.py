"""One unit as it runs: which code runs each of its calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from fxgraft import _torch
from fxgraft.compiling._artifacts import Entry
from fxgraft.compiling._assumptions import Assumptions
from fxgraft.compiling._calls import CallKind, call_key
from fxgraft.compiling._readiness import Readiness
from fxgraft.compiling._trials import Trials, can_compare, have_hooks
from fxgraft.compiling.units import Unit
from fxgraft.compiling.variants import MAX_FORMS, Variant, enter
from fxgraft.slots.structure import Structure
from fxgraft_passes import Graft, Phase

logger = logging.getLogger("fxgraft")

_UNTRIED = object()
"""Marks the form of calls that cannot be compared with eager mode: in inference mode, in other threads."""


class RunningUnit:
    """What runs a unit now.

    Args:
        unit: the unit.
        local: its part of the structure.
        phase: the forward of that.
        grafts: the grafts in it.
        code: of the host.
        assumptions: of that code.
        trials: what compares code before it is trusted.

    Attributes:
        variant: the code that runs.
    """

    def __init__(
        self,
        unit: Unit,
        local: Structure,
        phase: Phase,
        grafts: list[Graft],
        code: Readiness,
        assumptions: Assumptions,
        trials: Trials,
    ):
        self.unit, self.local, self.phase = unit, local, phase
        self._code, self._assumptions, self._trials = code, assumptions, trials
        self._modules = (unit.module, *grafts)
        self._use(code.variant(unit, local, phase))

    def _use(self, variant: Variant) -> None:
        self.variant, self._assumptions.hooks = variant, None
        self._known = variant.known.setdefault(self.unit, {})  # how a call looks -> what runs it
        self._numbers_vary = any(kind.numbers_vary for kind in self._code.variants.seen(self.unit))

    def follow(self) -> None:
        """Run the variant of the unit's key as that is now."""
        before, variant = self.variant, self._code.variant(self.unit, self.local, self.phase)
        if variant is not before:
            variant.helped |= before.helped
            variant.is_late |= not (variant.compiled or variant.artifacts)
            self._use(variant)
            self._code.changes += 1

    def caller(self) -> Callable[..., Any]:
        """What stands in the place of the unit's own call."""
        module, is_block, assumptions = self.unit.module, bool(self.unit.name), self._assumptions

        def call(*args: Any, **kwargs: Any) -> Any:
            # Somebody may call a block by itself.
            if is_block and not assumptions.is_inside and not assumptions.look():
                return enter(module, *args, **kwargs)
            # In front of every step of a compiled host: nothing but a look at the arguments' forms.
            form = call_key(module, args, kwargs, self._numbers_vary)
            entry = self._known.get(form) if form is not None else None
            if entry is None:
                entry = self._resolve(form, args, kwargs)
            try:
                return entry(module, *args, **kwargs)
            except _torch.recompile_limit_errors():
                self.variant.stop_compiling()
            return self._resolve(form, args, kwargs)(module, *args, **kwargs)

        return call

    def _resolve(self, form: object, args: Any, kwargs: Any) -> Entry:
        """Find what runs a call, and remember it where that needs no more thought."""
        unit, seen, comparable = self.unit, self._code.variants, can_compare()
        if not comparable and (untried := self._known.get((_UNTRIED, form))) is not None:
            return untried
        kind = CallKind.of(unit.module, args, kwargs)
        if kind is not None:
            kind = seen.see(unit, kind)
            self._numbers_vary |= kind.numbers_vary
            self.variant.await_promised(kind)
        found = self.variant.find(kind, unit.module, args, kwargs)
        if found is None and kind is not None and self.variant.is_made_for(kind):
            found = self._made_for_others(kind, args, kwargs)
        if found is None:
            self._code.changes += 1
            return enter
        source, entry = found[0], self._careful(found[1])
        if source is not None:
            self._assumptions.hooks = None
        call = (unit.module, args, kwargs)
        trial = self._trials.pending(self.variant, source, kind, call) if kind is not None else None
        if trial is not None and comparable and not have_hooks(self._modules):
            return self._trials.on_trial(self.variant, trial, entry, self._modules)
        if source is None and unit not in self.variant.entered:
            return self._first(entry)
        if source is not None:
            source.is_tried |= trial is None
        if form is not None:
            if len(self._known) >= MAX_FORMS:
                self._known.clear()
            # A call that could not be compared must not stand in the way of one that can.
            self._known[form if trial is None or comparable else (_UNTRIED, form)] = entry
        return entry

    def _made_for_others(self, kind: CallKind, args: Any, kwargs: Any) -> Any:
        """There is code for such calls, and it does not fit this unit: it read some value in it."""
        keys = self._code.keys
        before = keys.of(self.unit, self.local, self.phase)
        keys.renew(always=True)
        key = keys.of(self.unit, self.local, self.phase)
        if key == before and len(self.variant.values) == 1:
            logger.warning(
                "%s: the helper's code does not fit what calls it; it compiles here", self.variant.label
            )
            self.variant.leave_to_dynamo(kind)
        else:
            self._code.variants.tell_apart(key)
            self.follow()
        return self.variant.find(kind, self.unit.module, args, kwargs)

    def _first(self, entry: Entry) -> Entry:
        """The first call of a unit by code that dynamo made for another: does that read values in it?"""
        variant = self.variant
        others = bool(variant.entered)
        variant.entered.add(self.unit)

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            before = variant.graphs
            out = entry(module, *args, **kwargs)
            if others and len(variant.values) > 1 and variant.graphs > before:
                key = self._code.keys.of(self.unit, self.local, self.phase)
                self._code.variants.tell_apart(key)
                variant.values[key.values] = None  # its code is there now
            return out

        return call

    def _careful(self, entry: Entry) -> Entry:
        """``entry``, or eager mode where something was changed into what does not compile."""
        variant = self.variant
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
