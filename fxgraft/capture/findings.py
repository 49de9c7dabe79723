"""What a value is that code has read, and what it holds: as conditions, as far as the code can look.

Attributes of modules, and of objects of the model's own classes, are seen as they are read (`recorder`). What
cannot be instrumented (classes, functions, modules of Python, objects of the standard library) is *named*: of
those that the code has in its hands, each attribute is a condition that the code has the name of.
"""

from __future__ import annotations

import contextvars
import enum
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft.capture.code import CACHED, is_own_class, is_own_module, wrapped_in
from fxgraft.capture.facts import (
    MAX_ITEMS,
    Fact,
    Self,
    Step,
    equals,
    expression,
    has_literal,
    is_constant,
    is_object,
)
from fxgraft.capture.proxy import UntraceableError
from fxgraft_passes.saved import save
from fxgraft_passes.saved_names import Saved

FUNCTIONS = (FunctionType, BuiltinFunctionType, type, CACHED)
REGISTERS = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Sequential)
Place = tuple[Any, tuple[Step, ...]]
"""Where something was found: the base and the path of a `Fact`."""


class Findings:
    """What was found while the code of one call ran.

    Args:
        instrument: lets what is read of objects of that class be told from now on.

    Attributes:
        facts: what the code was told.
        tensors: tensors that it read, and that are neither parameters nor buffers.
    """

    def __init__(self, instrument: Callable[[type], None]):
        self._instrument = instrument
        self.facts: dict[Fact, None] = {}
        self.tensors: list[Tensor] = []
        self._kept: list[object] = []  # so that no id is given twice
        self._places: dict[int, Place] = {}
        self._watched: dict[int, tuple[Saved, str]] = {}
        self._first: dict[int, Saved] = {}
        self._functions: dict[object, tuple[FunctionType, Place]] = {}
        self._named: dict[int, tuple[Any, Place]] = {}
        self._names: set[str] = set()
        self._registries: list[tuple[dict[Any, Any], Place]] = []

    def add(self, fact: Fact) -> None:
        """Take a condition down."""
        if fact not in self.facts:
            self.facts[fact] = None

    def see(self, value: Any, base: Any, path: tuple[Step, ...], of_code: bool = False) -> None:
        """Take down what ``value`` is, and go on in what it holds.

        Args:
            value: what was read.
            base: where it was found, as in a `Fact`.
            path: from there to the value.
            of_code: whether code names it: then what is a function or a class is part of the code.
        """
        if is_constant(value):
            if isinstance(value, (list, dict, set)):
                self._watch(value, expression(word(base), path))
                value = value.copy()
            self.add(self._of(equals(base, path, value)))
        elif isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter):
                self.tensors.append(value)
        elif isinstance(value, nn.Module):
            self._places.setdefault(id(value), (base, path))
            self._name_classes(value)
        elif isinstance(value, FUNCTIONS):
            self.know(value, (value, ()))
            if not of_code:
                self.add(self._of(is_object(base, path, value)))
        elif isinstance(value, MethodType):
            self.know(value.__func__, (value.__func__, ()))
            self.add(self._of(is_object(base, (*path, ("attr", "__func__")), value.__func__)))
            self.see_part(value.__self__, base, (*path, ("attr", "__self__")))
        elif isinstance(value, functools.partial):
            for name in ("func", "args", "keywords"):
                self.see_part(getattr(value, name), base, (*path, ("attr", name)))
        elif isinstance(value, ModuleType):
            self.name(value, (value, ()))
        elif not isinstance(value, contextvars.ContextVar):
            self._see_holder(value, base, path)

    def see_part(self, value: Any, base: Any, path: tuple[Step, ...]) -> None:
        """`see` what something holds. Raises `UntraceableError` where that goes on without end."""
        if len(path) > 30:
            raise UntraceableError(f"reads {expression(word(base), path[:3])}…, which goes on without end")
        self.see(value, base, path)

    def _see_holder(self, value: Any, base: Any, path: tuple[Step, ...]) -> None:
        if id(value) in self._places:
            return
        said = expression(word(base), path)
        self._places[id(value)] = (base, path)
        self._kept.append(value)
        self._watch(value, said)
        if isinstance(value, (dict, list, tuple, set, frozenset, deque)) or (
            isinstance(value, (Mapping, Set)) and not is_own_class(type(value))
        ):
            if isinstance(base, (ModuleType, type)):
                self._see_registry(value, base, path)
                return
            if len(value) > MAX_ITEMS:
                raise UntraceableError(
                    f"reads {said}, whose {len(value)} items are too many to check at each call"
                )
            for fact, part, step in _items(value, base, path):
                self.add(self._of(fact))
                if step is not None:
                    self.see_part(part, base, (*path, step))
        elif hasattr(value, "__next__") and not isinstance(value, torch.Generator):
            raise UntraceableError(f"reads {said}, an iterator, which each call moves on")
        elif type(value).__module__.split(".")[0] == "numpy" and hasattr(value, "tobytes"):
            raise UntraceableError(
                f"reads {said}, an array of NumPy's: a graph has its values as they are now"
            )
        elif isinstance(value, (SimpleNamespace,)) or type(value).__qualname__ == "Namespace":
            for name, part in vars(value).items():
                self.see_part(part, base, (*path, ("attr", name)))
        elif is_own_class(type(value)) and not isinstance(value, torch.Generator):
            self.add(self._of(is_object(base, (*path, ("attr", "__class__")), type(value))))
            self._watch_classes(value)
            self._name_classes(value)
            self._instrument(type(value))
        else:
            self.name(value, (base, path))

    def _see_registry(self, value: Any, base: Any, path: tuple[Step, ...]) -> None:
        """A container in a module of Python or in a class: others add to it, and that is no other call."""
        if not isinstance(value, dict):
            return
        self._registries.append((value, (base, path)))
        for key, part in value.items():
            if has_literal(key) and is_constant(part) and len(value) <= MAX_ITEMS:
                self.add(self._of(equals(base, (*path, ("item", key)), part)))

    def _of(self, fact: Fact, always: bool = False) -> Fact:
        """The fact as one of code, where its base is nothing that compilers have a picture of."""
        plain = not always and (isinstance(fact.base, (Self, ModuleType)) or is_own_class(fact.base))
        return fact if plain or fact.of_code else Fact(fact.base, fact.path, fact.test, fact.objects, True)

    # What cannot be instrumented

    def name(self, owner: Any, place: Place) -> None:
        """The code has ``owner`` in its hands: what it has the names of is read there."""
        if id(owner) not in self._named:
            self._named[id(owner)] = owner, place
            self._kept.append(owner)
            self._look(owner, place, self._names)

    def know_names(self, names: Iterable[str]) -> None:
        """Code that was entered has these names of attributes."""
        new = set(names) - self._names
        self._names |= new
        if new:
            for owner, place in list(self._named.values()):
                self._look(owner, place, new)

    def _look(self, owner: Any, place: Place, names: Iterable[str]) -> None:
        base, path = place
        held = _variables(owner)
        for name in held.keys() & set(names):
            self.see(held[name], base, (*path, ("attr", name)), of_code=True)
        if isinstance(owner, threading.local):  # another call may find more there
            for name in set(names) - held.keys() - set(dir(type(owner))):
                self.add(Fact(base, path, f"not hasattr($, {name!r})", of_code=True))

    def _name_classes(self, value: Any) -> None:
        self.name(type(value), (type(value), ()))

    def name_bases(self) -> None:
        """The code asks for what a class has from others (``super()``)."""
        for owner, _ in list(self._named.values()):
            for cls in owner.__mro__ if isinstance(owner, type) else ():
                if is_own_class(cls):
                    self.name(cls, (cls, ()))

    def _watch_classes(self, value: Any) -> None:
        for cls in type(value).__mro__:
            if is_own_class(cls):
                self._watch(cls, f"the class {cls.__qualname__}")

    def know(self, function: Any, place: Place) -> None:
        """Where a function or a class is found: what it holds itself is found from there."""
        if is_own_class(function):
            self.name(function, (function, ()))
        base, path = place
        waiting = [(function, path)]
        while waiting:
            found, path = waiting.pop()
            if not isinstance(found, FunctionType):
                waiting += [(part, (*path, step)) for part, step in wrapped_in(found)]
            elif found.__code__ not in self._functions:
                self._functions[found.__code__] = found, (base, path)
                self._kept.append(found)
                if is_own_module(str(found.__module__)):
                    self.name(found, (base, path))
                for i, cell in enumerate(found.__closure__ or ()):
                    if isinstance(inner := content_of(cell), FunctionType):
                        steps = (*path, ("attr", "__closure__"), ("item", i), ("attr", "cell_contents"))
                        self.add(is_object(base, steps, inner, of_code=True))
                        waiting.append((inner, steps))
                waiting += [(part, (*path, step)) for part, step in wrapped_in(found)]

    # Writes

    def _watch(self, value: Any, said: str) -> None:
        if id(value) not in self._watched and (saved := save(value, is_root=True)) is not None:
            self._watched[id(value)] = saved, said


def _items(value: Any, base: Any, path: tuple[Step, ...]) -> Iterator[tuple[Fact, Any, Step | None]]:
    """The items of a container: a fact of its form, with a part and the step to it where there is one."""
    form = is_object(base, (*path, ("attr", "__class__")), type(value))
    yield form, None, None
    if isinstance(value, Mapping):
        keys = list(value)
        fact = (
            equals(base, path, keys) if all(map(is_constant, keys)) else Fact(base, path, "$ == §0", (keys,))
        )
        yield Fact(base, path, fact.test.replace("$", "list($)"), fact.objects), None, None
        for i, (key, part) in enumerate(value.items()):
            yield form, part, ("item", key) if has_literal(key) else ("value", i)
    elif isinstance(value, Set):
        yield Fact(base, path, "set($) == §0", (set(value),)), None, None
    else:
        yield Fact(base, path, f"len($) == {len(value)}"), None, None
        for i, part in enumerate(value):
            yield form, part, ("item", i)


def _variables(owner: Any) -> dict[str, Any]:
    """What is in an object that cannot be instrumented: data, and the objects that it holds."""
    if not isinstance(owner, type):
        try:
            held = dict(vars(owner))
        except TypeError:
            held = {}
        names = dir(type(owner)) if not held and not isinstance(owner, FUNCTIONS) else ()
        for name in names:  # an extension type
            if (
                not name.startswith("__")
                and is_constant(value := _plainly(owner, name))
                and value is not None
            ):
                held[name] = value
        return held
    found: dict[str, Any] = {}
    if issubclass(owner, enum.Enum):  # its members do not change
        return found
    for cls in reversed(owner.__mro__):
        if is_own_class(cls):
            found |= vars(cls)
    return {
        name: value
        for name, value in found.items()
        if not name.startswith("__") and not hasattr(type(value), "__get__")
    }


def _plainly(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except Exception:  # a property that raises is none that the code has read
        return None


def word(base: Any) -> str:
    """What a base is called in messages."""
    if isinstance(base, Self):
        return "self"
    return str(getattr(base, "__name__", getattr(base, "name", type(base).__name__)))


def content_of(cell: Any) -> Any:
    """What a cell of a closure holds; None of an empty one."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def is_container(value: Any) -> bool:
    """Whether it is a module that is a list, a dictionary or a sequence of others."""
    return isinstance(value, _CONTAINERS)
