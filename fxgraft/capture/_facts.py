"""Facts: Python values that a forward read. Each is a condition (a guard) of the region's graph.

    if self.mask is None: ...          self.mask is None
    for name in self.config.names:     self.config.names == ['a', 'b']
    if settings.SWITCH: ...            _module_settings.SWITCH is True
    if torch.is_grad_enabled(): ...    _function_is_grad_enabled() is True

A fact is data, and says where its value is found: so it can be said of a module that is merged into the graph
of another region (`Fact.below`).
"""

from __future__ import annotations

import enum
import keyword
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from fxgraft import _torch
from fxgraft.capture._exact import exact_tests, has_literal

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
OF_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum)
MAX_ITEMS = 1000
"""The most items of a container that are compared at each call."""

Step = tuple[str, Any]
"""One step of a path: ``("attr", name)``, ``("item", key)``, ``("value", i)`` of a dictionary, or ``("call",
name)`` of a method that is given None."""
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


def check_of(facts: Iterable[Fact]) -> Callable[[], bool]:
    """A function that looks whether facts about code hold: one for all equal facts.

    Dynamo must not look into functions that it follows elsewhere, nor at what it has no picture of, so it
    takes the answer for a constant; that code has changed is what the key of compiled code notices.
    """
    facts = list(facts)
    key = tuple((*fact._key(), tuple(map(repr, fact.objects))) for fact in facts)
    if (known := _checks.get(key)) is not None:
        return known  # type: ignore[no-any-return]
    scope: dict[str, Any] = {}

    def name_of(value: Any) -> str:
        scope[f"_{id(value)}"] = value
        return f"_{id(value)}"

    test = " and ".join(fact.written(name_of) for fact in facts)
    holds = eval(f"lambda: bool({test})", scope)  # of our own making

    def code_holds() -> bool:
        return holds()  # type: ignore[no-any-return]

    _torch.constant_when_compiled(code_holds)
    _checks[key] = code_holds
    return code_holds


@dataclass(frozen=True, eq=False)
class Fact:
    """One condition. Equal are those that say the same of the same objects.

    Attributes:
        base: where the path begins: `Self`, `Written`, or an object that outlives the call.
        path: from there to the value.
        test: Python, with ``$`` in the place of the value and ``§0``, ``§1`` in that of ``objects``.
        objects: what the test compares with, where that has no literal.
        of_code: whether it is about functions, classes and the like, which compilers take for constant. Its
            ``base`` is an object.
        if_there: whether it holds where a dictionary lacks the item that it is about.
        shown: the test as shown to people; by default as it is.
    """

    base: Any
    path: tuple[Step, ...]
    test: str
    objects: tuple[Any, ...] = ()
    of_code: bool = False
    if_there: bool = False
    shown: str = ""

    def _key(self) -> tuple[Any, ...]:
        base = self.base if isinstance(self.base, (Self, Written)) else id(self.base)
        return base, self.path, self.test, tuple(map(id, self.objects)), self.if_there

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fact) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def source(self, name_of: Naming) -> str:
        """The condition as Python, for code that may be compiled."""
        return f"{name_of(check_of([self]))}()" if self.is_of_code else self.written(name_of)

    @property
    def is_of_code(self) -> bool:
        """Whether it is about what compilers take for constant."""
        return self.of_code or ("attr", "__closure__") in self.path

    @property
    def is_identity(self) -> bool:
        """Whether it says that something is the very object that it was."""
        return self.test == "$ is §0"

    @property
    def is_default(self) -> bool:
        """Whether it is about the defaults of a function."""
        return bool(self.path) and self.path[-1][1] in ("__defaults__", "__kwdefaults__")

    @property
    def said(self) -> str:
        """The condition for people."""
        if self.is_identity:
            return f"{replace(self, test='$').written(_word)} is as it was"
        return replace(self, test=self.shown or self.test).written(_word)

    def written(self, name_of: Naming) -> str:
        """The condition as Python."""
        match self.base:
            case Self():
                base = "self"
            case Written(source):
                base = source
            case _:
                base = name_of(self.base)
        test = self.test.replace("$", expression(base, self.path))
        for i, value in reversed([*enumerate(self.objects)]):  # §10 before §1
            test = test.replace(f"§{i}", name_of(value))
        if self.if_there:
            return f"({self.path[-1][1]!r} not in {expression(base, self.path[:-1])} or {test})"
        return test

    def elsewhere(self) -> Fact:
        """The same for another process, where a registry may lack what was not registered there."""
        in_registry = isinstance(self.base, ModuleType) and bool(self.path) and self.path[-1][0] == "item"
        return replace(self, if_there=in_registry)

    def below(self, steps: tuple[Step, ...]) -> Fact:
        """The same of a module that is found from ``self`` by ``steps``."""
        if self.base != Self():
            return self
        path = (*steps, *self.path)  # not by `replace`: of deep models there are tens of thousands
        return Fact(self.base, path, self.test, self.objects, self.of_code, self.if_there, self.shown)

    def portable(self, named: Callable[[str], Any]) -> Fact:
        """The same for a file: a module of Python is replaced by its name.

        Where the code of another process is another, that is the code that the model has there.
        """
        base = named(self.base.__name__) if isinstance(self.base, ModuleType) else self.base
        as_found = self.of_code and self.is_identity
        return replace(self, base=base, objects=() if as_found else self.objects)

    def found(self, find: Callable[[Any], Any]) -> Fact:
        """The inverse of `portable`."""
        fact = replace(self, base=find(self.base))
        if "§0" in fact.test and not fact.objects:
            scope = {"base": fact.base}
            return replace(fact, objects=(eval(expression("base", fact.path), scope),))  # of our own making
        return fact


def _word(value: Any) -> str:
    return str(getattr(value, "__name__", None) or getattr(value, "name", None) or repr(value))


def steps_to(path: str) -> tuple[Step, ...]:
    """The steps to a submodule of that qualified name."""
    return tuple(("attr", part) for part in path.split(".") if part)


def expression(base: str, path: tuple[Step, ...]) -> str:
    """Python for the value at the end of a path."""
    for kind, key in path:
        if kind == "item":
            base = f"{base}[{key!r}]"
        elif kind == "value":
            base = f"list({base}.values())[{key}]"
        elif kind == "call":
            base = f"{base}.{key}(None)"
        else:
            is_name = key.isidentifier() and not keyword.iskeyword(key)
            base = f"{base}.{key}" if is_name else f"getattr({base}, {key!r})"
    return base


def equals(base: Any, path: tuple[Step, ...], value: Any) -> Fact:
    """The fact that a value is that constant, of the same type, as are the numbers that it contains."""
    if value is None or value is True or value is False:
        return Fact(base, path, f"$ is {value}")
    if isinstance(value, float) and value != value:
        return Fact(base, path, "$ != $")
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format, enum.Enum, type(...))):
        return Fact(base, path, "$ is §0", (value,))
    objects: list[Any] = []

    def name_of(known: Any) -> str:
        if not any(known is one for one in objects):
            objects.append(known)
        return f"§{next(i for i, one in enumerate(objects) if one is known)}"

    if has_literal(value):
        literal, kind = repr(value), type(value).__name__
    else:
        literal = name_of(value)
        kind = f"type({literal})"
    beyond = [test for test in exact_tests("$", value, name_of) if not test.startswith("type($) ")]
    # The type first: what is no constant at all (a tensor) may have an == of another meaning.
    test = " and ".join([f"type($) is {kind}", f"$ == {literal}", *beyond])
    return Fact(base, path, f"({test})", tuple(objects), shown=f"$ == {literal}")


def is_object(base: Any, path: tuple[Step, ...], value: Any, of_code: bool = False) -> Fact:
    """The fact that a value is that very object (a function, a class)."""
    return Fact(base, path, "$ is §0", (value,), of_code)
