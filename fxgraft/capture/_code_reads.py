"""What functions read outside of themselves: globals, closures, defaults, and what they are called by."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from fxgraft import _torch
from fxgraft.capture._code import CACHED, Method, functions_of, is_own_class, is_own_module, names_in, reached
from fxgraft.capture._contents import FUNCTIONS, content_of
from fxgraft.capture._facts import Step, equals, is_constant, is_object
from fxgraft.capture._findings import Findings
from fxgraft_passes.saved_names import Variable

GENERATED = "<grown "
"""How the file names of code begin that `fxgraft.fossils` generates."""


class CodeReads(Findings):
    """Watches which functions of the model's own code are called.

    Args:
        instrument: as of `Findings`.
    """

    def __init__(self, instrument: Callable[[type], None]):
        super().__init__(instrument)
        self._entered: set[object] = set()
        self._kept_names: set[str] = set()
        self._texts: set[str] = set()
        self._bypassed: list[tuple[dict[str, Any], str, Any]] = []

    def enter(self, frame: FrameType) -> None:
        """The code calls a function of its own: what that names outside of itself is read."""
        code = frame.f_code
        if code in self._entered:
            return
        self._entered.add(code)
        names = names_in(code)
        scope = frame.f_globals
        self._kept_names |= names.kept
        self._texts |= names.texts
        if "super" in code.co_names:
            self.watch_base_classes()
        self.record_attribute_names(names.attributes)
        for chain in names.read:
            self._read_global(scope, chain)
        for name in names.written:
            self._save(Variable(scope, name), f"the global {name!r}")
        for name in names.imported:
            self.imported(name)
        self._reach(frame)
        if code in self._functions:
            self._read_closure(code)
        if names.stored:
            self._save_functions(names.attributes)

    def imported(self, name: str) -> None:
        """The code imports a module of Python."""
        if is_own_module(name) and (module := sys.modules.get(name)) is not None:
            self.watch_attributes(module, (module, ()))

    def _reach(self, frame: FrameType) -> None:
        """By which class, or which item of a global dictionary, the function came to be called."""
        if frame.f_code.co_filename.startswith(GENERATED):
            return  # of a model that `unwrap` made: it is never replaced, and no pickle has a name for it
        if (method := reached(frame)) is not None:
            path = _path_of(method)
            held = functools.reduce(_follow, path, method.cls)
            self.add(is_object(method.cls, path, held, of_code=True))
            self.record_code(held, (method.cls, path))
        for registry, (base, path) in self._registries:
            for key, held in registry.items():
                if any(function.__code__ is frame.f_code for function in functions_of(held)):
                    step = ("item", key) if isinstance(key, (str, int)) else None
                    if step is not None:
                        self.add(is_object(base, (*path, step), held, of_code=True))
                        self.record_code(held, (base, (*path, step)))

    def _save_functions(self, names: frozenset[str]) -> None:
        """The code sets attributes: perhaps of functions."""
        for owner, _ in list(self._attribute_owners.values()):
            held = vars(owner) if isinstance(owner, type) else {}
            for function in [owner, *(held[name] for name in held.keys() & names)]:
                if isinstance(function, FunctionType):
                    self._save(function, f"the function {function.__qualname__}")

    def _read_global(self, scope: dict[str, Any], chain: tuple[str, ...]) -> None:
        name, *attributes = chain
        if name not in scope or scope.get("__builtins__") is None:
            return
        value = _torch.unpatched(scope[name])
        if str(getattr(value, "__module__", "")).startswith("fxgraft.capture."):
            return  # one of ours
        module = _namespace(scope)
        base, path = (scope, (("item", name),)) if module is None else (module, (("attr", name),))
        while attributes and (isinstance(value, ModuleType) or is_own_class(value)):
            owner, name = value, attributes.pop(0)
            if isinstance(owner, ModuleType) and not is_own_module(owner.__name__):
                return
            if is_own_class(owner):
                self.add(is_object(base, path, owner, of_code=True))
                self.record_code(owner, (owner, ()))
                return  # what the code has the names of
            if name not in vars(owner):
                return
            value, base, path = _torch.unpatched(vars(owner)[name]), owner, (("attr", name),)
        if isinstance(value, ModuleType):
            if is_own_module(value.__name__):
                self.watch_attributes(value, (value, ()))
        elif isinstance(value, (FunctionType, CACHED)) or is_own_class(value):
            self.add(is_object(base, path, value, of_code=True))
            self.record_code(value, (base, path))
            if isinstance(value, CACHED) and scope.get(chain[0]) is value:
                self._bypass(scope, chain[0], value)
        elif not isinstance(value, (type, property, classmethod, staticmethod)):
            self.record(value, base, path, of_code=True)

    def _bypass(self, scope: dict[str, Any], name: str, cached: Any) -> None:
        """Follow a cached function into its code, and let its cache keep nothing of the trace."""
        if is_own_module(str(cached.__module__)):
            self._bypassed.append((scope, name, cached))
            scope[name] = cached.__wrapped__

    def release(self) -> None:
        """Put back what was put in the place of globals."""
        for scope, name, held in reversed(self._bypassed):
            scope[name] = held
        self._bypassed.clear()

    def _read_closure(self, code: CodeType) -> None:
        function, (base, path) = self._functions[code]
        for i, cell in enumerate(function.__closure__ or ()):
            self._save(cell, f"the variable {code.co_freevars[i]!r} of a closure")
            steps = (*path, ("attr", "__closure__"), ("item", i), ("attr", "cell_contents"))
            held = content_of(cell)
            self.record(held, base, steps, of_code=isinstance(held, FUNCTIONS))
        for name in ("__defaults__", "__kwdefaults__"):
            defaults = getattr(function, name)
            if defaults and is_constant(defaults):
                self.add(self._of(equals(base, (*path, ("attr", name)), _copied(defaults)), always=True))
            for held in defaults.values() if isinstance(defaults, dict) else defaults or ():
                if isinstance(held, (list, dict, set)):
                    self._save(held, f"a default of {function.__qualname__}")
            if defaults and not is_constant(defaults):
                parts = defaults.items() if isinstance(defaults, dict) else enumerate(defaults)
                for key, held in parts:
                    if not isinstance(held, FUNCTIONS):
                        self.record(held, base, (*path, ("attr", name), ("item", key)))


def _namespace(scope: dict[str, Any]) -> ModuleType | None:
    """The module of Python whose globals these are, if there is one."""
    module = sys.modules.get(str(scope.get("__name__")))
    return module if module is not None and vars(module) is scope else None


def _path_of(method: Method) -> tuple[Step, ...]:
    """From the class to what a method is, as another one that is put in its place would be found."""
    name = method.name
    if method.is_overridden:
        return (("attr", "__dict__"), ("item", name))
    if isinstance(method.held, classmethod):
        return (("attr", name), ("attr", "__func__"))
    if isinstance(method.held, (FunctionType, staticmethod, property, functools.cached_property)):
        return (("attr", name),)
    return (("attr", "__dict__"), ("item", name)) if name in vars(method.cls) else (("attr", name),)


def _follow(value: Any, step: Step) -> Any:
    kind, key = step
    return getattr(value, key) if kind == "attr" else value[key]


def _copied(value: Any) -> Any:
    """A constant that is no longer the very containers."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(map(_copied, value))
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value
