"""Facts: what a forward asked for in Python and was told. Each is a condition of the region's graph.

    if self.mask is None: ...          self.mask is None
    for name in self.config.names:     self.config.names == ['a', 'b']
    if settings.SWITCH: ...            _module_settings.SWITCH is True
    if torch.is_grad_enabled(): ...    _function_is_grad_enabled() is True

A fact is data, and says where its value is found: so it can be said of a module that is merged into the graph
of another region (`Fact.below`).
"""

from __future__ import annotations

import enum
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from fxgraft.util import _torch

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
OF_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum)
MAX_ITEMS = 1000
"""The most items of a container that are compared at each call."""

Step = tuple[str, Any]
"""One step of a path: ``("attr", name)`` or ``("item", key)``."""
Naming = Callable[[Any], str]
"""Gives an object the name that code knows it by."""


def is_constant(value: Any) -> bool:
    """Whether a value can be compared with what it was: a number, a text, containers of those."""
    if type(value) in (tuple, list, set, frozenset):
        return len(value) <= MAX_ITEMS and all(map(is_constant, value))
    if type(value) is dict:
        return len(value) <= MAX_ITEMS and all(is_constant(k) and is_constant(v) for k, v in value.items())
    return isinstance(value, PLAIN + OF_TORCH)


@dataclass(frozen=True)
class Self:
    """Where a path begins that begins at the region's module."""


@dataclass(frozen=True)
class Written:
    """Where a path begins that begins at an expression over the arguments of the call."""

    source: str


_checks: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()


def _checked(fact: Fact) -> Callable[[], bool]:
    """A function that looks whether a fact about a closure holds: one for all equal facts.

    Dynamo must not look into the cells of functions that it follows elsewhere, so it takes the answer for a
    constant; that a closure has changed is what the key of compiled code notices.
    """
    key = (*fact._key(), tuple(map(repr, fact.objects)))
    if (known := _checks.get(key)) is not None:
        return known  # type: ignore[no-any-return]
    scope: dict[str, Any] = {}

    def name_of(value: Any) -> str:
        scope[f"_{id(value)}"] = value
        return f"_{id(value)}"

    test = fact.test.replace("$", expression(name_of(fact.base), fact.path))
    for i, value in enumerate(fact.objects):
        test = test.replace(f"§{i}", name_of(value))

    def closure_holds() -> bool:
        return bool(eval(test, scope))  # of our own making

    _torch.constant_when_compiled(closure_holds)
    _checks[key] = closure_holds
    return closure_holds


@dataclass(frozen=True, eq=False)
class Fact:
    """One condition. Equal are those that say the same of the same objects.

    Attributes:
        base: where the path begins: `Self`, `Written`, or an object that outlives the call.
        path: from there to the value.
        test: Python, with ``$`` in the place of the value and ``§0``, ``§1`` in that of ``objects``.
        objects: what the test compares with, where that has no literal.
    """

    base: Any
    path: tuple[Step, ...]
    test: str
    objects: tuple[Any, ...] = ()

    def _key(self) -> tuple[Any, ...]:
        base = self.base if isinstance(self.base, (Self, Written)) else id(self.base)
        return base, self.path, self.test, tuple(map(id, self.objects))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fact) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def source(self, name_of: Naming) -> str:
        """The condition as Python."""
        if ("attr", "__closure__") in self.path:
            return f"{name_of(_checked(self))}()"
        match self.base:
            case Self():
                base = "self"
            case Written(source):
                base = source
            case _:
                base = name_of(self.base)
        test = self.test.replace("$", expression(base, self.path))
        for i, value in enumerate(self.objects):
            test = test.replace(f"§{i}", name_of(value))
        return test

    def below(self, steps: tuple[Step, ...]) -> Fact:
        """The same of a module that is found from ``self`` by ``steps``."""
        return replace(self, path=(*steps, *self.path)) if self.base == Self() else self

    def portable(self, named: Callable[[str], Any]) -> Fact:
        """The same for a file: a module of Python is replaced by what stands for its name."""
        return replace(self, base=named(self.base.__name__)) if isinstance(self.base, ModuleType) else self

    def found(self, find: Callable[[Any], Any]) -> Fact:
        """The inverse of `portable`."""
        return replace(self, base=find(self.base))


def steps_to(path: str) -> tuple[Step, ...]:
    """The steps to a submodule of that qualified name."""
    return tuple(("attr", part) for part in path.split(".") if part)


def expression(base: str, path: tuple[Step, ...]) -> str:
    """Python for the value at the end of a path."""
    for kind, key in path:
        if kind == "item":
            base = f"{base}[{key!r}]"
        else:
            base = f"{base}.{key}" if key.isidentifier() else f"getattr({base}, {key!r})"
    return base


def equals(base: Any, path: tuple[Step, ...], value: Any) -> Fact:
    """The fact that a value is that constant, and of the same type."""
    if value is None or value is True or value is False:
        return Fact(base, path, f"$ is {value}")
    if isinstance(value, float) and math.isnan(value):
        return Fact(base, path, "$ != $")
    if type(value) in (list, dict, set, tuple, str) and _has_literal(value):
        return Fact(base, path, f"$ == {value!r}")
    if _has_literal(value):
        return Fact(base, path, f"(type($) is {type(value).__name__} and $ == {value!r})")
    is_one = isinstance(value, (torch.dtype, torch.layout, torch.memory_format, enum.Enum, type(...)))
    return Fact(base, path, "$ is §0" if is_one else "$ == §0", (value,))


def is_object(base: Any, path: tuple[Step, ...], value: Any) -> Fact:
    """The fact that a value is that very object (a function, a class)."""
    return Fact(base, path, "$ is §0", (value,))


def _has_literal(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_has_literal, value))
    if type(value) is set:
        return len(value) > 0 and all(map(_has_literal, value))
    if type(value) is dict:
        return all(_has_literal(k) and _has_literal(v) for k, v in value.items())
    if type(value) is float:
        return math.isfinite(value)
    if type(value) in (str, bytes):
        return len(value) < 200 and not any(c in str(value) for c in "$§\n")
    return type(value) in (bool, int, complex, type(None))
