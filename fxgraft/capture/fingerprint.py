"""What the code of a module depends on, as values that can be compared: its fingerprint.

Modules of equal fingerprints can run the same compiled code. A fingerprint has two parts:

* ``code``: classes and their ``forward``, the tree of submodules, shapes and dtypes, functions held (by
  code, closure and defaults), objects, hooks, and the globals that all this reads. A compiled graph
  may take these for granted, so they are looked at before each call: `Fingerprint.holds`.
* ``values``: numbers, texts and flags in attributes. A compiled graph checks those that it read by itself.

Functions are followed as far as names go: from ``forward`` to the methods, attributes and globals that it
names, and on from those. Code of torch, of fxgraft and of Python's own library is taken not to change.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft import _torch
from fxgraft.capture.fallback import COUNTER
from fxgraft.capture.fingerprint_watch import FingerprintWatch, contents_of
from fxgraft.capture.identities import (
    MOST_ITEMS,
    PLAIN,
    FingerprintFacts,
    Identity,
    hashable,
    is_plain,
    plain,
    tensor_facts,
)
from fxgraft.util.hooks import HOOKS
from fxgraft_passes.naming import OWN_FORWARD

_FIXED = {"torch", "fxgraft", "fxgraft_passes", "numpy", *sys.stdlib_module_names} - {"__main__"}
"""Packages whose code does not change while a model trains."""

_NOT_READ = frozenset(vars(nn.Module())) | {"forward", _torch.COMPILED_CALL, OWN_FORWARD, COUNTER}
_GRAFT = "_graft_"
"""How the names of grafts begin that a host has installed in a module: a structure's key has those."""


class Fingerprint:
    """What the code of ``module`` depends on now.

    Args:
        module: with all that is below it; what a host has installed in it is left out.

    Attributes:
        code: hashable; what a compiled graph may take for granted.
        values: hashable; numbers, texts and flags in attributes.
    """

    def __init__(self, module: nn.Module):
        reader = _Reader(module)
        self.code = FingerprintFacts(tuple(reader.facts))
        self.values = FingerprintFacts(tuple(reader.values))
        self.watch = FingerprintWatch([reader])

    def holds(self) -> bool:
        """Whether ``code`` is what it was."""
        return self.watch.holds()


_Attribute = tuple[object, Any, str, Any, bool]
"""Number of the holder, holder (its ``__dict__``, if there is one), name, value, whether it may be soft."""


class _Class:
    """A class as the type of something that is used, as against one that is only named."""

    def __init__(self, cls: type):
        self.cls = cls


class _Reader:
    """Reads a module breadth first. All that it comes across gets a number: cycles end, and aliases show."""

    def __init__(self, root: nn.Module):
        self.facts: list[object] = []
        self.values: list[object] = []
        self.containers: list[tuple[Any, Any]] = []
        self.empty: list[Any] = []  # registers of hooks
        self.has_hooks = False
        self._numbers: dict[int, int] = {}
        self._found: list[tuple[Any, bool]] = []  # which also keeps every id the only one of its kind
        self._classes: dict[type, _Class] = {}
        self.reads: dict[int, tuple[Any, dict[str, Any]]] = {}
        self.cells: list[Any] = []
        self._names: set[str] = set()
        self._unnamed: dict[str, list[_Attribute]] = {}  # name -> attributes that nothing has named yet
        self._named: list[_Attribute] = []
        self._ref(root)
        done = 0
        while done < len(self._found) or self._named:
            if done < len(self._found):
                self.facts.append(self._expand(*self._found[done]))
                done += 1
            else:
                self.facts.append(self._read(*self._named.pop(0)))

    # Values

    def _ref(self, value: Any, soft: bool = False) -> object:
        """The hashable form of a value. If it is ``soft``, plain values go to the values."""
        if isinstance(value, PLAIN):
            if not soft:
                return plain(value)
            self.values.append(plain(value))
            return None
        if isinstance(value, torch.Size):
            return self._ref(tuple(value), soft)
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._found)
            self._found.append((value, soft))
        return "#", self._numbers[id(value)]

    def _class(self, value: Any) -> object:
        return self._ref(self._classes.setdefault(type(value), _Class(type(value))))

    def _expand(self, value: Any, soft: bool) -> object:
        match value:
            case Tensor():
                return tensor_facts(value)
            case nn.Module():
                return self._module(value)
            case _Class():
                return self._methods(value.cls)
            case list() | tuple() | dict() | set() | frozenset():
                return self._container(value, soft)
            case FunctionType():
                return self._function(value)
            case functools.partial():
                return "partial", *map(self._ref, (value.func, value.args, value.keywords))
            case MethodType():
                return "method", self._ref(value.__func__), self._ref(value.__self__, soft=True)
            case property():
                return "property", self._ref(value.fget)
            case staticmethod() | classmethod():
                return type(value).__name__, self._ref(value.__func__)
        if isinstance(value, (type, ModuleType)) or type(value).__module__.startswith("torch"):
            return Identity(value)
        return self._object(value, soft)

    def _container(self, value: Any, soft: bool) -> object:
        if len(value) > MOST_ITEMS:
            return Identity(value)
        if not isinstance(value, (tuple, frozenset)) and not (soft and is_plain(value)):
            self.containers.append((value, value.copy()))
        if isinstance(value, (set, frozenset)):
            return Identity(type(value)), frozenset(map(hashable, value))
        if isinstance(value, dict):
            keys: tuple[object, ...] = tuple(map(hashable, value))
            return Identity(type(value)), keys, tuple(self._ref(item, soft) for item in value.values())
        return Identity(type(value)), tuple(self._ref(item, soft) for item in value)

    def _module(self, module: nn.Module) -> object:
        state = module.__dict__
        self.containers.append((module._modules, dict(module._modules)))
        number = self._ref(module)
        for name, value in state.items():
            if name not in _NOT_READ and not name.startswith(_GRAFT):
                self._await((number, state, name, value, True), _is_fixed(type(module).__module__))
        for register in HOOKS:
            if state[register]:
                self.has_hooks = True
                self._read(number, state, register, state[register], False)
            else:
                self.empty.append(state[register])
        own = state.get("forward") if OWN_FORWARD not in state else None
        tensors = (*module._parameters.items(), *module._buffers.items())
        self.values += [part.training == module.training for part in module.children()]
        return (
            self._class(module),
            None if own is None else self._ref(own),
            tuple((name, self._ref(child)) for name, child in module._modules.items()),
            tuple((name, self._ref(tensor)) for name, tensor in tensors),
        )

    def _object(self, value: Any, soft: bool) -> object:
        holder: Any = getattr(value, "__dict__", value)
        state = holder if isinstance(holder, dict) else {n: getattr(value, n) for n in _slots(value)}
        if not state:
            return self._class(value), Identity(value)
        number = self._ref(value)
        for name, item in state.items():
            self._await((number, holder, name, item, soft))
        return self._class(value)

    # Attributes, read when something has named them

    def _await(self, attribute: _Attribute, at_once: bool = False) -> None:
        if at_once or attribute[2] in self._names:
            self._named.append(attribute)
        else:
            self._unnamed.setdefault(attribute[2], []).append(attribute)

    def _name(self, names: frozenset[str]) -> None:
        for name in sorted(names - self._names):
            self._names.add(name)
            self._named += self._unnamed.pop(name, ())

    def _read(self, number: object, holder: Any, name: str, value: Any, soft: bool) -> object:
        is_checked = soft and (isinstance(value, (*PLAIN, Tensor)) or is_plain(value))
        if not is_checked and not isinstance(value, classmethod):
            self._watch(holder, name, getattr(holder, name) if isinstance(holder, type) else value)
        return number, name, self._ref(value, soft)

    def _watch(self, holder: Any, name: str, value: Any) -> None:
        _, found = self.reads.setdefault(id(holder), (holder, {}))
        found[name] = value

    # Functions

    def _methods(self, cls: type) -> object:
        """The class of a module or of an object: what is called for sure, and what may be by name."""
        number = self._ref(self._classes[cls])
        found: dict[str, Any] = {}
        for base in cls.__mro__:
            for name, value in vars(base).items():
                if isinstance(value, (FunctionType, property, staticmethod, classmethod)):
                    found.setdefault(name, value)
        for name, method in found.items():
            if not _is_fixed(_home(method)):
                self._await((number, cls, name, method, False), name in ("forward", "__call__"))
        return Identity(cls)

    def _function(self, function: FunctionType) -> object:
        scope, code = function.__globals__, function.__code__
        if _is_fixed(scope.get("__name__")):
            return Identity(function)
        names = _names(code)
        self._name(names)
        number = self._ref(function)
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            self._watch(function, name, getattr(function, name))
        for name in sorted(_globals(code) & scope.keys()):
            value = scope[name]
            self._named.append((number, scope, name, value, False))
            if isinstance(value, ModuleType) and not _is_fixed(value.__name__):
                inside = vars(value)
                self._named += [(number, inside, n, inside[n], False) for n in sorted(names & inside.keys())]
        cells = [cell for cell in function.__closure__ or () if not _is_empty(cell)]
        self.cells += cells
        kept = (function.__defaults__, function.__kwdefaults__, *map(contents_of, cells))
        return code, tuple(map(self._ref, kept))


def _slots(value: Any) -> list[str]:
    names = [getattr(cls, "__slots__", ()) for cls in type(value).__mro__]
    flat = [n for given in names for n in ((given,) if isinstance(given, str) else given)]
    return [name for name in flat if hasattr(value, name) and not name.startswith("__")]


def _is_empty(cell: Any) -> bool:
    try:
        contents_of(cell)
    except ValueError:
        return True
    return False


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> frozenset[str]:
    """The names of globals, attributes and methods in a function, and in those inside of it."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(*inner)


@functools.lru_cache(maxsize=4096)
def _globals(code: CodeType) -> frozenset[str]:
    """The names of globals alone."""
    inner = [_globals(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    own = (i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return frozenset(own).union(*inner)


def _home(method: Any) -> str | None:
    """The module that a method was written in."""
    function = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
    scope: Mapping[str, Any] = getattr(function, "__globals__", {})
    return scope.get("__name__")


def _is_fixed(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _FIXED
