"""A variant: the compiled code of one structure, in one phase, of one kind of unit.

Dynamo keeps what it compiled per code object, looks through it by guards, and falls back to eager
silently after eight. Each variant therefore enters through a code object of its own: a swap of
structures picks another entry and evaluates no guards of the others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn

from fxgraft.compiling.artifacts import Artifact, Entry
from fxgraft.compiling.calls import CallKind, covers
from fxgraft.compiling.units import Unit

K = TypeVar("K")
V = TypeVar("V")

MAX_VARIANTS = 64
"""How many variants a host keeps compiled; the one that ran the longest time ago goes first."""

MAX_ARTIFACTS = 16
"""How many artifacts a variant keeps: one for each kind of call, so this many of those."""

_serial = count()


@dataclass(eq=False)
class Variant:
    """Compiled code, from up to two sources: dynamo, which compiles at the call, and the helper.

    Attributes:
        label: for reports.
        function: what dynamo compiles.
        entry: its compiled form; compiles at the first call of a kind.
        compiled: the kinds of call that dynamo has code for, or is to compile when they come.
        artifacts: what the helper made, and for which kind; the latest first.
        known: unit -> what its calls looked like at a glance -> what runs them.
        helped: whether code is to come from the helper: calls that there is none for run uncompiled.
        wanted: kinds of call that had to.
        misses: how many calls had to.
        given_up: whether the helper failed to make this variant, which the host can do without.
    """

    label: str
    function: Entry
    entry: Entry
    compiled: set[CallKind] = field(default_factory=set)
    artifacts: list[tuple[CallKind, Artifact]] = field(default_factory=list)
    known: dict[Unit, dict[object, Entry]] = field(default_factory=dict)
    helped: bool = False
    wanted: dict[CallKind, None] = field(default_factory=dict)
    misses: int = 0
    given_up: bool = False

    @classmethod
    def make(cls, label: str, options: Mapping[str, Any]) -> Variant:
        """A variant that nothing is compiled for yet."""
        function = own_code()
        return cls(label, function, torch.compile(function, **options))

    def is_ready(self, kind: CallKind) -> bool:
        """Whether there is code for such calls."""
        return kind in self.compiled or any(covers(made, kind) for made, _ in self.artifacts)

    def add(self, kind: CallKind, artifact: Artifact) -> None:
        """Let code of the helper run calls of ``kind``."""
        self.artifacts.insert(0, (kind, artifact))
        del self.artifacts[MAX_ARTIFACTS:]
        self.helped = True
        self.look_again()
        for wanted in [wanted for wanted in self.wanted if covers(kind, wanted)]:
            del self.wanted[wanted]

    def look_again(self) -> None:
        """Find out anew what runs each call."""
        for known in self.known.values():
            known.clear()  # in place: the callers of the units hold these very dictionaries

    def leave_to_dynamo(self, kind: CallKind) -> None:
        """The helper cannot: calls of ``kind`` compile when they come."""
        self.compiled.add(kind)
        self.wanted.pop(kind, None)

    def find(self, kind: CallKind | None, module: nn.Module, args: Any, kwargs: Any) -> Entry | None:
        """What runs such a call compiled; None if it has to run uncompiled for now."""
        for _, artifact in self.artifacts:
            if artifact.fits(module, *args, **kwargs):
                return self._guarded(artifact)
        if not self.helped or kind is None or kind in self.compiled:
            if kind is not None:
                self.compiled.add(kind)
            return self.entry
        self.misses += 1
        self.wanted[kind] = None
        return None

    def _guarded(self, artifact: Artifact) -> Entry:
        fits, run = artifact.fits, artifact.run

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if fits(module, *args, **kwargs):
                return run(module, *args, **kwargs)
            self.look_again()  # what looks the same at a glance is not: a weight's dtype, say
            self.misses += 1
            return enter(module, *args, **kwargs)

        return call


class Variants:
    """A host's variants, and the kinds of call that each of its units had."""

    def __init__(self, options: Mapping[str, Any]):
        self._options = options
        self._table: OrderedDict[object, Variant] = OrderedDict()
        self._seen: dict[Unit, OrderedDict[CallKind, None]] = {}

    def __iter__(self) -> Iterator[Variant]:
        return iter(self._table.values())

    def get(self, key: object, label: Callable[[], str]) -> Variant:
        """The variant of that key, made if there is none; the newest of the table from now on."""
        variant = self._table.get(key) or Variant.make(label(), self._options)
        return touch(self._table, key, variant, MAX_VARIANTS)

    def peek(self, key: object) -> Variant | None:
        """The variant of that key, if there is one."""
        return self._table.get(key)

    def seen(self, unit: Unit) -> OrderedDict[CallKind, None]:
        """The kinds of call that a unit had, the latest last."""
        return self._seen.setdefault(unit, OrderedDict())

    def forget_calls(self) -> None:
        """Compile a new structure for calls from now on only."""
        self._seen.clear()
        for variant in self:
            variant.look_again()


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
