"""What code has read, as conditions: the values, and what these hold.

Attributes of modules, and of objects of the model's own classes, are recorded as they are read (`_recorder`).
The attributes of other objects (classes, functions, modules of Python, objects of the standard library) are
read unseen. So of each such object that the code has, those attributes are recorded whose names the code has.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft.capture._code import is_own_class, is_own_module, wrapped_in
from fxgraft.capture._contents import FUNCTIONS, content_of, items_of, name_of, variables_of
from fxgraft.capture._exact import has_literal
from fxgraft.capture._facts import (
    MAX_ITEMS,
    Fact,
    Self,
    Step,
    equals,
    expression,
    is_constant,
    is_object,
)
from fxgraft.capture._proxy import UntraceableError
from fxgraft_passes.saved import save
from fxgraft_passes.saved_names import Saved

REGISTERS = ("_parameters", "_buffers", "_modules")
Place = tuple[Any, tuple[Step, ...]]
"""Where something was found: the base and the path of a `Fact`."""


class Findings:
    """What was found while the code of one call ran.

    Args:
        instrument: makes reads of objects of that class visible from now on.

    Attributes:
        facts: what the code read.
        tensors: tensors that it read, and that are neither parameters nor buffers.
    """

    def __init__(self, instrument: Callable[[type], None]):
        self._instrument = instrument
        self.facts: dict[Fact, None] = {}
        self.tensors: list[Tensor] = []
        self._kept: list[object] = []  # so that no id is given twice
        self._places: dict[int, Place] = {}
        self._saved: dict[int, tuple[Saved, str]] = {}
        self._first: dict[int, Saved] = {}
        self._functions: dict[object, tuple[FunctionType, Place]] = {}
        self._attribute_owners: dict[int, tuple[Any, Place]] = {}
        self._attribute_names: set[str] = set()
        self._registries: list[tuple[dict[Any, Any], Place]] = []

    def add(self, fact: Fact) -> None:
        """Record a condition."""
        if fact not in self.facts:
            self.facts[fact] = None

    def record(self, value: Any, base: Any, path: tuple[Step, ...], of_code: bool = False) -> None:
        """Record what ``value`` is, and what it holds.

        Args:
            value: what was read.
            base: where it was found, as in a `Fact`.
            path: from there to the value.
            of_code: whether code names it: then what is a function or a class is part of the code.
        """
        if is_constant(value):
            if isinstance(value, (list, dict, set)):
                self._save(value, expression(name_of(base), path))
                value = value.copy()
            self.add(self._of(equals(base, path, value)))
        elif isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter):
                self.tensors.append(value)
        elif isinstance(value, nn.Module):
            self._places.setdefault(id(value), (base, path))
            self._watch_class_attributes(value)
        elif isinstance(value, FUNCTIONS):
            self.record_code(value, (value, ()))
            if not of_code:
                self.add(self._of(is_object(base, path, value)))
        elif isinstance(value, MethodType):
            self.record_code(value.__func__, (value.__func__, ()))
            self.add(self._of(is_object(base, (*path, ("attr", "__func__")), value.__func__)))
            self.record_part(value.__self__, base, (*path, ("attr", "__self__")))
        elif isinstance(value, functools.partial):
            for name in ("func", "args", "keywords"):
                self.record_part(getattr(value, name), base, (*path, ("attr", name)))
        elif isinstance(value, ModuleType):
            self.watch_attributes(value, (value, ()))
        elif not isinstance(value, contextvars.ContextVar):
            self._record_holder(value, base, path)

    def record_part(self, value: Any, base: Any, path: tuple[Step, ...]) -> None:
        """`record` what another value holds. Raises `UntraceableError` where that goes on without end."""
        if len(path) > 30:
            raise UntraceableError(f"reads {expression(name_of(base), path[:3])}…, which goes on without end")
        self.record(value, base, path)

    def _record_holder(self, value: Any, base: Any, path: tuple[Step, ...]) -> None:
        if id(value) in self._places:
            return
        said = expression(name_of(base), path)
        self._places[id(value)] = (base, path)
        self._kept.append(value)
        self._save(value, said)
        if isinstance(value, (dict, list, tuple, set, frozenset, deque)) or (
            isinstance(value, (Mapping, Set)) and not is_own_class(type(value))
        ):
            if isinstance(base, (ModuleType, type)):
                self._record_registry(value, base, path)
                return
            if len(value) > MAX_ITEMS:
                raise UntraceableError(
                    f"reads {said}, whose {len(value)} items are too many to check at each call"
                )
            for fact, part, step in items_of(value, base, path):
                self.add(self._of(fact))
                if step is not None:
                    self.record_part(part, base, (*path, step))
        elif hasattr(value, "__next__") and not isinstance(value, torch.Generator):
            raise UntraceableError(f"reads {said}, an iterator, which each call moves on")
        elif type(value).__module__.split(".")[0] == "numpy" and hasattr(value, "tobytes"):
            raise UntraceableError(
                f"reads {said}, an array of NumPy's: a graph has its values as they are now"
            )
        elif isinstance(value, (SimpleNamespace,)) or type(value).__qualname__ == "Namespace":
            for name, part in vars(value).items():
                self.record_part(part, base, (*path, ("attr", name)))
        elif is_own_class(type(value)) and not isinstance(value, torch.Generator):
            self.add(self._of(is_object(base, (*path, ("attr", "__class__")), type(value))))
            self._save_classes(value)
            self._watch_class_attributes(value)
            self._instrument(type(value))
        else:
            self.watch_attributes(value, (base, path))

    def _record_registry(self, value: Any, base: Any, path: tuple[Step, ...]) -> None:
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
        return fact if plain or fact.of_code else replace(fact, of_code=True)

    # What cannot be instrumented

    def watch_attributes(self, owner: Any, place: Place) -> None:
        """The code has ``owner``: it reads those attributes there whose names it has."""
        if id(owner) not in self._attribute_owners:
            self._attribute_owners[id(owner)] = owner, place
            self._kept.append(owner)
            self._record_attributes(owner, place, self._attribute_names)

    def record_attribute_names(self, names: Iterable[str]) -> None:
        """The code of a function that was called has these names of attributes."""
        new = set(names) - self._attribute_names
        self._attribute_names |= new
        if new:
            for owner, place in list(self._attribute_owners.values()):
                self._record_attributes(owner, place, new)

    def _record_attributes(self, owner: Any, place: Place, names: Iterable[str]) -> None:
        base, path = place
        held = variables_of(owner)
        for name in held.keys() & set(names):
            self.record(held[name], base, (*path, ("attr", name)), of_code=True)
        if isinstance(owner, threading.local):  # another call may find more there
            for name in set(names) - held.keys() - set(dir(type(owner))):
                self.add(Fact(base, path, f"not hasattr($, {name!r})", of_code=True))

    def _watch_class_attributes(self, value: Any) -> None:
        self.watch_attributes(type(value), (type(value), ()))

    def watch_base_classes(self) -> None:
        """The code reads attributes of base classes, by ``super()``."""
        for owner, _ in list(self._attribute_owners.values()):
            for cls in owner.__mro__ if isinstance(owner, type) else ():
                if is_own_class(cls):
                    self.watch_attributes(cls, (cls, ()))

    def _save_classes(self, value: Any) -> None:
        for cls in type(value).__mro__:
            if is_own_class(cls):
                self._save(cls, f"the class {cls.__qualname__}")

    def record_code(self, function: Any, place: Place) -> None:
        """Record where a function or a class is found; what it holds is found from there."""
        if is_own_class(function):
            self.watch_attributes(function, (function, ()))
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
                    self.watch_attributes(found, (base, path))
                for i, cell in enumerate(found.__closure__ or ()):
                    if isinstance(inner := content_of(cell), FunctionType):
                        steps = (*path, ("attr", "__closure__"), ("item", i), ("attr", "cell_contents"))
                        self.add(is_object(base, steps, inner, of_code=True))
                        waiting.append((inner, steps))
                waiting += [(part, (*path, step)) for part, step in wrapped_in(found)]

    # Writes

    def _save(self, value: Any, said: str) -> None:
        if id(value) not in self._saved and (saved := save(value, is_root=True)) is not None:
            self._saved[id(value)] = saved, said
