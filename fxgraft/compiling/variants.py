"""A variant: the compiled code of one structure, in one phase, of one kind of unit.

Dynamo keeps what it compiled per code object, looks through it by guards, and falls back to eager
silently after eight. Each variant therefore enters through a code object of its own: a swap of
structures picks another entry and evaluates no guards of the others.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn

from fxgraft import _torch
from fxgraft.capture.identities import FingerprintFacts
from fxgraft.compiling._artifacts import Artifact, Entry
from fxgraft.compiling._calls import CallKind, covers
from fxgraft.compiling.units import Unit

logger = logging.getLogger("fxgraft")

K = TypeVar("K")
V = TypeVar("V")

MAX_VARIANTS = 64
"""How many variants a host keeps compiled; the least recently used one is dropped first."""

MAX_ARTIFACTS = 16
"""How many artifacts a variant keeps, one for each kind of call."""

MAX_KINDS = 8
"""For how many kinds of call (the latest) a new structure is compiled before it is live."""

MAX_FORMS = 256
"""For how many forms of call a unit knows what runs them, before it finds that out anew."""

_serial = count()


@dataclass(eq=False)
class Variant:
    """Compiled code, from up to two sources: dynamo, which compiles at the call, and the helper.

    Attributes:
        label: for reports.
        function: what dynamo compiles.
        entry: its compiled form; compiles at the first call of a kind.
        is_dynamic: whether dynamo makes sizes dynamic that differ.
        compiled: the kinds of call that dynamo has code for, or is to compile when they come.
        artifacts: what the helper made, and for which kind; the latest first.
        known: unit -> the outward form of its calls -> what runs them.
        values: what was in the attributes of the units that run it, see `fxgraft.capture.fingerprint`.
        entered: the units that dynamo's code has run for.
        helped: whether code is to come from the helper: calls that there is none for run uncompiled.
        is_late: whether it was made in the middle of a call, for what had changed: if it does not compile,
            it runs uncompiled.
        promised: kinds of call that the helper makes code for now, and what waits for each.
        wanted: kinds of call that had to.
        misses: how many calls had to.
        given_up: whether the helper failed to make this variant, which the host can do without.
        distrusted: why all calls run uncompiled: the code computes something else than eager mode, say.
        at_limit: whether dynamo has compiled as many graphs as it may for one function: calls that none of
            them fits run uncompiled.
        trials: what is known of how it compares with eager mode, see `fxgraft.compiling._trials`.
    """

    label: str
    function: Entry
    entry: Entry
    is_dynamic: bool = True
    compiled: dict[CallKind, None] = field(default_factory=dict)
    artifacts: list[tuple[CallKind, Artifact]] = field(default_factory=list)
    known: dict[Unit, dict[object, Entry]] = field(default_factory=dict)
    values: dict[FingerprintFacts, None] = field(default_factory=dict)
    entered: set[Unit] = field(default_factory=set)
    helped: bool = False
    is_late: bool = False
    promised: dict[CallKind, Callable[[], None]] = field(default_factory=dict)
    wanted: OrderedDict[CallKind, None] = field(default_factory=OrderedDict)
    misses: int = 0
    given_up: bool = False
    distrusted: str | None = None
    at_limit: bool = False
    trials: OrderedDict[object, Any] = field(default_factory=OrderedDict)

    @classmethod
    def make(cls, label: str, options: Mapping[str, Any]) -> Variant:
        """A variant that nothing is compiled for yet."""
        function = own_code()
        return cls(label, function, torch.compile(function, **options), options.get("dynamic") is not False)

    @property
    def graphs(self) -> int:
        """How many graphs dynamo has compiled for it."""
        return _torch.graphs_of(self.function.__code__)

    def has_graph_for(self, module: nn.Module, args: Any, kwargs: Any) -> bool:
        """Whether dynamo has compiled a graph for such a call."""
        local = {"module": module, "args": args, "kwargs": kwargs}
        return _torch.has_graph_for(self.function.__code__, local)

    def stop_compiling(self) -> None:
        """Run what is compiled, and nothing else: dynamo compiles no more for this function."""
        self.at_limit, self.entry = True, _torch.only_run(self.function)
        self.look_again()
        logger.warning(
            "%s: torch compiles for so many kinds of call only (torch._dynamo.config.recompile_limit); "
            "others run uncompiled from now on. TORCH_LOGS=recompiles says how they differ: give numbers "
            "that vary as tensors, leave dynamic=False out, or set a higher limit and call host.compile() "
            "again",
            self.label,
        )

    def is_ready(self, kind: CallKind) -> bool:
        """Whether there is code for such calls, or is not to be."""
        made = (*self.compiled, *(made for made, _ in self.artifacts))
        return self.distrusted is not None or any(covers(one, kind) for one in made)

    def is_made_for(self, kind: CallKind) -> bool:
        """Whether the helper has made code for such calls."""
        return any(covers(made, kind) for made, _ in self.artifacts)

    def add(self, kind: CallKind, artifact: Artifact) -> None:
        """Use code of the helper for calls of ``kind``."""
        self.artifacts.insert(0, (kind, artifact))
        del self.artifacts[MAX_ARTIFACTS:]
        self.helped = True
        self.promised.pop(kind, None)
        self.look_again()
        for wanted in [wanted for wanted in self.wanted if covers(kind, wanted)]:
            del self.wanted[wanted]

    def look_again(self) -> None:
        """Find out anew what runs each call."""
        for known in self.known.values():
            known.clear()  # in place: the callers of the units hold these very dictionaries

    def await_promised(self, kind: CallKind) -> None:
        """Wait for what is promised to such calls."""
        for made, wait in list(self.promised.items()):
            if covers(made, kind):
                wait()

    def leave_to_dynamo(self, kind: CallKind) -> None:
        """The helper cannot: calls of ``kind`` compile when they come."""
        self.wanted.pop(kind, None)
        self.promised.pop(kind, None)
        for other in self.compiled:
            both = other.merged(kind) if self.is_dynamic else None
            if both is not None:  # dynamo has made these sizes and numbers dynamic by now
                del self.compiled[other]
                kind = both
                break
        self.compiled[kind] = None
        if len(self.compiled) > MAX_FORMS:
            del self.compiled[next(iter(self.compiled))]

    def find(
        self, kind: CallKind | None, module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Artifact | None, Entry] | None:
        """What runs such a call compiled, and of which artifact it is; None if it has to run uncompiled."""
        if self.distrusted is not None:
            self.misses += 1
            return None
        for _, artifact in self.artifacts:
            if artifact.fits(module, *args, **kwargs):
                return artifact, self._guarded(artifact)
        is_there = kind is None or any(covers(made, kind) for made in self.compiled)
        if not self.helped or is_there:
            if kind is not None and not is_there:
                self.leave_to_dynamo(kind)
            return None, self.entry
        self.misses += 1
        assert kind is not None
        note(self.wanted, kind)
        return None

    def _guarded(self, artifact: Artifact) -> Entry:
        fits, run = artifact.fits, artifact.run

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if fits(module, *args, **kwargs):
                return run(module, *args, **kwargs)
            # Calls of one outward form can differ: in a number that branches go by, in a weight's dtype.
            for _, other in self.artifacts:
                if other is not artifact and other.is_tried and other.fits(module, *args, **kwargs):
                    return other.run(module, *args, **kwargs)
            self.look_again()
            self.misses += 1
            return enter(module, *args, **kwargs)

        return call


class Variants:
    """A host's variants, and the kinds of call that each of its units had."""

    def __init__(self, options: Mapping[str, Any]):
        self._options = options
        self._table: OrderedDict[object, Variant] = OrderedDict()
        self._seen: dict[Unit, OrderedDict[CallKind, None]] = {}
        self._apart: OrderedDict[FingerprintFacts, None] = OrderedDict()

    def __iter__(self) -> Iterator[Variant]:
        return iter(self._table.values())

    def get(self, key: Key, label: Callable[[], str]) -> Variant:
        """The variant of that key, made if there is none; the newest of the table from now on."""
        found = self._shared(key)
        variant = self._table.get(found) or Variant.make(label(), self._options)
        variant.values[key.values] = None
        if len(variant.values) > MAX_FORMS:
            del variant.values[next(iter(variant.values))]
        return touch(self._table, found, variant, MAX_VARIANTS)

    def peek(self, key: Key) -> Variant | None:
        """The variant of that key, if there is one."""
        return self._table.get(self._shared(key))

    def _shared(self, key: Key) -> object:
        """What of a key the table goes by: values in attributes only where they are known to matter."""
        shared = (key.code, key.structure)
        if key.code not in self._apart:
            return shared
        variant = self._table.get(shared)
        return shared if variant is not None and key.values in variant.values else (*shared, key.values)

    def tell_apart(self, key: Key) -> None:
        """Code of ``key`` depends on the values: share it among units of equal values only from now on."""
        variant = self.peek(key)
        touch(self._apart, key.code, None, MAX_VARIANTS)
        if variant is not None:
            variant.values.pop(key.values, None)

    def seen(self, unit: Unit) -> OrderedDict[CallKind, None]:
        """The kinds of call that a unit had, the latest last."""
        return self._seen.setdefault(unit, OrderedDict())

    def see(self, unit: Unit, kind: CallKind) -> CallKind:
        """Record a call of ``unit``; return its kind, in which numbers that were others before vary."""
        return note(self.seen(unit), kind)

    def forget(self, unit: Unit) -> None:
        """The unit is gone."""
        self._seen.pop(unit, None)
        for variant in self:
            variant.known.pop(unit, None)
            variant.entered.discard(unit)

    def forget_calls(self) -> None:
        """Compile a new structure for calls from now on only."""
        self._seen.clear()
        for variant in self:
            variant.look_again()


@dataclass(frozen=True)
class Key:
    """What the compiled code of a unit depends on, beside the arguments of the call.

    Attributes:
        code: what compiled code takes for granted of the unit; see `fxgraft.capture.fingerprint`.
        values: numbers, texts and flags in the attributes of its modules.
        structure: a hashable description of the seeds in the unit, and of the phase.
    """

    code: FingerprintFacts
    values: FingerprintFacts
    structure: object


def note(kinds: OrderedDict[CallKind, None], kind: CallKind) -> CallKind:
    """Make ``kind`` the newest of ``kinds``; as one with an earlier kind where only numbers differ."""
    for other in kinds:
        both = other.with_numbers_of(kind)
        if both is not None:
            kind = both
            del kinds[other]
            break
    touch(kinds, kind, None, MAX_KINDS)
    return kind


def touch(table: OrderedDict[K, V], key: K, value: V, most: int) -> V:
    """Make ``key`` the newest of ``table``, and let the oldest go where there are too many."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > most:
        table.popitem(last=False)
    return value


def enter(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a unit past its compiled form, hooks included."""
    return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]


def own_code() -> Entry:
    """`enter` over a code object of its own, with a name of its own in logs and reports."""
    code = enter.__code__.replace(co_name=f"fxgraft_variant_{next(_serial)}")
    made = FunctionType(code, enter.__globals__, code.co_name)
    made.__kwdefaults__ = enter.__kwdefaults__
    return made
