"""Classes and functions that a fresh interpreter cannot import are sent by value, and recognised on return.

By value go those of ``__main__`` (scripts, notebooks), local ones, lambdas, and those of modules that a fresh
interpreter would not find. Compiled code that comes back names its classes: each that went by value has a
*proxy module*, of one generated name in both processes, in which the class is found by its name.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle

_number = itertools.count()
_proxy_modules: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
_importable: dict[str, bool] = {}


class _ProxyModule(ModuleType):
    """Has one class, under its name; does not keep it."""

    def __init__(self, name: str, cls: type):
        super().__init__(name)
        self._class = weakref.ref(cls)

    def __getattr__(self, name: str) -> Any:
        cls = self.__dict__["_class"]()
        if cls is None or name != cls.__name__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return cls


@dataclass(frozen=True)
class _FinishClass:
    """In the other process: finish a class, and register its proxy module."""

    finish: Callable[[type, Any], Any]
    proxy_module: str

    def __call__(self, cls: type, state: Any) -> None:
        self.finish(cls, state)
        cls.__module__, cls.__qualname__ = self.proxy_module, cls.__name__
        _borrowed.setdefault(self.proxy_module, None)
        sys.modules[self.proxy_module] = _ProxyModule(self.proxy_module, cls)


@dataclass(frozen=True)
class _Globals:
    """The globals of a module, in the other process."""

    module: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _globals_of, (self.module,)


class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles for a fresh interpreter that has the ``sys.path`` of this one."""

    def dump(self, obj: Any) -> Any:
        """Pickle ``obj``."""
        self._by_value: list[ModuleType] = []  # that cloudpickle was told of, for this once
        try:
            return super().dump(obj)
        finally:
            for module in self._by_value:
                cloudpickle.unregister_pickle_by_value(module)

    def reducer_override(self, obj: Any) -> Any:
        """How to pickle ``obj``."""
        if isinstance(obj, (type, FunctionType)):
            return self._code(obj)
        return super().reducer_override(obj)

    def _send_by_value(self, module: Any) -> None:
        if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self._by_value.append(module)

    def _code(self, obj: Any) -> Any:
        module = sys.modules.get(getattr(obj, "__module__", None) or "")
        name = module.__name__ if module is not None else "__main__"
        if name != "__main__" and not is_importable(name):
            self._send_by_value(module)
        if isinstance(obj, FunctionType):
            scope = obj.__globals__.get("__name__")
            known = sys.modules.get(scope) if isinstance(scope, str) else None
            if known is not None and known.__dict__ is obj.__globals__:
                self.globals_ref.setdefault(id(obj.__globals__), _Globals(known.__name__))
            if not obj.__module__:  # generated: cloudpickle would look for it in every module
                return self._dynamic_function_reduce(obj)
            return super().reducer_override(obj)
        reduced = super().reducer_override(obj)
        # By value: a skeleton, and what finishes it.
        if isinstance(reduced, tuple) and len(reduced) == 6 and reduced[5] is not None:
            return (*reduced[:5], _FinishClass(reduced[5], _proxy_module_of(obj)))
        return reduced


def is_importable(name: str) -> bool:
    """Whether a fresh interpreter finds, under that name, the file that the module here was loaded from."""
    if name not in _importable and name in sys.modules:
        _importable[name] = _find(name)
    return _importable.get(name, False)


def _find(name: str) -> bool:
    module = sys.modules[name]
    parent, _, _ = name.rpartition(".")
    path = None
    if parent:
        if not is_importable(parent):
            return False
        path = getattr(sys.modules.get(parent), "__path__", None)
        if path is None or getattr(module, "__file__", None) is None:
            return True  # what is no package has made it, or a package without a file
    spec = _spec(name, path)
    if spec is None:
        return False
    ours: str | None = getattr(module, "__file__", None)
    if ours is None or not spec.has_location or spec.origin is None:
        return True
    return os.path.realpath(ours) == os.path.realpath(spec.origin)


def _spec(name: str, path: Any) -> ModuleSpec | None:
    finders: list[Any] = [PathFinder, BuiltinImporter, FrozenImporter]
    finders += [finder for finder in sys.meta_path if finder not in finders]
    for finder in finders:
        try:
            spec: ModuleSpec | None = finder.find_spec(name, path, None)
        except Exception:  # a finder of others, that is not ours to judge
            continue
        if spec is not None:
            return spec
    return None


def _proxy_module_of(cls: type) -> str:
    """The name of the proxy module of ``cls`` in both processes."""
    name = _proxy_modules.get(cls)
    if name is None:
        name = f"fxgraft_by_value_{os.getpid()}_{next(_number)}"
        _proxy_modules[cls] = name
        sys.modules[name] = _ProxyModule(name, cls)
        weakref.finalize(cls, sys.modules.pop, name, None)
    return name


# In the other process

_borrowed: dict[str, dict[str, Any] | None] = {}
"""Modules that what arrived has changed -> their globals before; None for modules that it has made."""


def _globals_of(name: str) -> dict[str, Any]:
    module = sys.modules.get(name)
    if module is None:
        try:
            module = importlib.import_module(name)
        except Exception:  # it is known there only
            module = sys.modules[name] = ModuleType(name)
            _borrowed.setdefault(name, None)
    if name not in _borrowed:
        _borrowed[name] = dict(module.__dict__)
    return module.__dict__


@contextmanager
def arriving() -> Iterator[None]:
    """What is unpickled inside may add to modules; they are as before afterwards."""
    try:
        yield
    finally:
        for name, before in _borrowed.items():
            if before is None:
                sys.modules.pop(name, None)
            else:
                scope = sys.modules[name].__dict__
                scope.clear()
                scope.update(before)
        _borrowed.clear()
