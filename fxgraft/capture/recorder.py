"""What the code of one region reads of the world, and what it writes into it.

A `ReadRecorder` is told of each attribute that is read and each function that is entered (see `instruments`),
while its region's own code runs. What was read becomes a `Fact`; what holds other things is looked at again
when the code is left: if it has changed, the forward does more than compute a result, and its region is
refused.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from types import (
    BuiltinFunctionType,
    FrameType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft.capture.code import is_own_module, names_in
from fxgraft.capture.facts import (
    MAX_ITEMS,
    Fact,
    Self,
    Step,
    equals,
    expression,
    is_constant,
    is_object,
    steps_to,
)
from fxgraft.capture.proxy import UntraceableError
from fxgraft_passes.saved import Saved, Variable, save, slots_of

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) | {"forward", "dump_patches", "call_super_init"}
_REGISTERS = ("_parameters", "_buffers", "_modules")
_FUNCTIONS = (FunctionType, BuiltinFunctionType, type)
Place = tuple[Any, tuple[Step, ...]]
"""Where something was found: the base and the path of a `Fact`."""


class ReadRecorder:
    """Watches the code of one call of ``module``.

    Args:
        module: the region's.
        instrument: lets the recorder be told what is read of objects of that class from now on.

    Attributes:
        facts: what the code was told.
        tensors: tensors that it read, and that are neither parameters nor buffers.
    """

    def __init__(self, module: nn.Module, instrument: Callable[[type], None]):
        self.module = module
        self._instrument = instrument
        self.facts: dict[Fact, None] = {}
        self.tensors: list[Tensor] = []
        self._refusal: UntraceableError | None = None
        self._kept: list[object] = []  # so that no id is given twice
        self._places: dict[int, Place] = {}
        self._made: set[int] = set()
        self._watched: dict[int, tuple[Saved, str]] = {}
        self._first: dict[int, Saved] = {}
        self._entered: set[object] = set()
        self._functions: dict[object, Place] = {}
        for name, child in module.named_modules():
            self._places[id(child)] = (Self(), steps_to(name))
        # These have an entry for each part of the module, and are compared once, at the end.
        held = (module, *(module.__dict__[register] for register in _REGISTERS))
        self._registers = [saved for one in held if (saved := save(one)) is not None]
        self._watch_classes(module)
        self._know_function(type(module).forward, (type(module).forward, ()))

    # Reads

    def read(self, owner: Any, name: str, value: Any) -> None:
        """The code read the attribute ``name`` of ``owner``."""
        place = self._places.get(id(owner))
        if name in _OF_EVERY_MODULE and isinstance(owner, nn.Module):
            if name == "training" and owner is not self.module and place is not None:
                self._read_mode(owner, place)
            return
        if not _is_data(owner, name):
            return
        if place is None:
            if isinstance(owner, nn.Module) and id(owner) not in self._made:
                raise UntraceableError(
                    f"reads {name!r} of a {type(owner).__name__} that is not one of its submodules"
                )
            return
        base, path = place
        # A class that is named in a class is part of the code.
        self._see(
            value, base, (*path, ("attr", name)), of_code=isinstance(value, type) and name not in _own(owner)
        )

    def _read_mode(self, owner: nn.Module, place: Place) -> None:
        word = "is" if owner.training == self.module.training else "is not"
        self._add(Fact(Self(), (), f"{expression('$', place[1])}.training {word} $.training"))

    def missed(self, owner: Any, name: str) -> None:
        """The code asked ``owner`` for an attribute that is not among its own."""
        place = self._places.get(id(owner))
        if place is None:
            return
        base, path = place
        if isinstance(owner, nn.Module):
            if type(owner).__getattr__ is not nn.Module.__getattr__:
                return  # its own code tells, and what that reads is seen
            for register in _REGISTERS:
                if name in owner.__dict__.get(register, ()):
                    if owner.__dict__[register][name] is None:
                        self._add(equals(base, (*path, ("attr", name)), None))
                    return
        elif hasattr(type(owner), "__getattr__"):
            return
        self._add(Fact(base, path, f"not hasattr($, {name!r})"))

    def asked(self, function: Any, value: Any) -> None:
        """The code asked ``function``, which takes no arguments, for a state of torch's."""
        fact = equals(function, (), value)
        self._add(Fact(function, (), fact.test.replace("$", "$()"), fact.objects))

    def asked_autocast(self) -> None:
        """The code asked whether and how autocast is on."""
        for device in {"cpu", *(p.device.type for p in self.module.parameters())}:
            if device == "meta":
                continue
            for function in (torch.is_autocast_enabled, torch.get_autocast_dtype):
                fact = equals(function, (), function(device))
                self._add(Fact(function, (), fact.test.replace("$", f"$({device!r})"), fact.objects))

    def read_environment(self, environment: Any, key: str) -> None:
        """The code read a variable of the environment."""
        fact = equals(os, (), environment.get(key))
        self._add(Fact(os, (), fact.test.replace("$", f"$.environ.get({key!r})"), fact.objects))

    def enter(self, frame: FrameType) -> None:
        """The code calls a function of its own: what that names outside of itself is read."""
        code = frame.f_code
        if code in self._entered:
            return
        self._entered.add(code)
        names = names_in(code)
        scope = frame.f_globals
        for chain in names.read:
            self._read_global(scope, chain)
        for name in names.written:
            self._watch(Variable(scope, name), f"the global {name!r}")
        if code in self._functions:
            self._read_closure(code)

    def _read_global(self, scope: dict[str, Any], chain: tuple[str, ...]) -> None:
        name, *attributes = chain
        if name not in scope or scope.get("__builtins__") is None:
            return
        value, base, path = scope[name], _namespace(scope), (("attr", name),)
        while attributes and (isinstance(value, ModuleType) or _is_own_class(value)):
            owner, name = value, attributes.pop(0)
            if isinstance(owner, ModuleType) and not is_own_module(owner.__name__):
                return
            if name not in vars(owner):
                return
            value, base, path = vars(owner)[name], owner, (("attr", name),)
        if isinstance(value, FunctionType):
            self._know_function(value, (value, ()))
        elif base is not None and not isinstance(
            value, (ModuleType, type, property, classmethod, staticmethod)
        ):
            self._see(value, base, path, of_code=True)

    def _know_function(self, function: Any, place: Place) -> None:
        """Where a function is found: what its closure and its defaults hold is found from there."""
        while isinstance(function, FunctionType) and function.__code__ not in self._functions:
            self._functions[function.__code__] = place
            self._kept.append(function)
            for i, cell in enumerate(function.__closure__ or ()):
                inner = _content(cell)
                if isinstance(inner, FunctionType):
                    steps = (("attr", "__closure__"), ("item", i), ("attr", "cell_contents"))
                    self._know_function(inner, (place[0], (*place[1], *steps)))
            function, place = (
                getattr(function, "__wrapped__", None),
                (place[0], (*place[1], ("attr", "__wrapped__"))),
            )

    def _read_closure(self, code: object) -> None:
        base, path = self._functions[code]
        function = base
        for kind, key in path:
            function = getattr(function, key) if kind == "attr" else function[key]
        for i, cell in enumerate(function.__closure__ or ()):
            self._watch(cell, f"the variable {code.co_freevars[i]!r} of a closure")  # type: ignore[attr-defined]
            steps = (("attr", "__closure__"), ("item", i), ("attr", "cell_contents"))
            if not isinstance(held := _content(cell), _FUNCTIONS):
                self._see(held, base, (*path, *steps), of_code=True)
        for i, default in enumerate(function.__defaults__ or ()):
            if isinstance(default, (list, dict, set)):
                self._see(default, base, (*path, ("attr", "__defaults__"), ("item", i)))

    # What was found

    def _see(self, value: Any, base: Any, path: tuple[Step, ...], of_code: bool = False) -> None:
        """Take down what ``value`` is, and go on in what it holds."""
        if is_constant(value):
            if isinstance(value, (list, dict, set)):
                self._watch(value, expression(_word(base), path))
                value = value.copy()
            self._add(equals(base, path, value))
        elif isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter):
                self.tensors.append(value)
        elif isinstance(value, nn.Module):
            self._places.setdefault(id(value), (base, path))
        elif isinstance(value, _FUNCTIONS):
            if isinstance(value, FunctionType):
                self._know_function(value, (value, ()))
            if not of_code:
                self._add(is_object(base, path, value))
        elif isinstance(value, MethodType):
            self._add(is_object(base, (*path, ("attr", "__func__")), value.__func__))
            self._see_part(value.__self__, base, (*path, ("attr", "__self__")))
        elif isinstance(value, functools.partial):
            for name in ("func", "args", "keywords"):
                self._see_part(getattr(value, name), base, (*path, ("attr", name)))
        elif not isinstance(value, ModuleType):
            self._see_holder(value, base, path)

    def _see_part(self, value: Any, base: Any, path: tuple[Step, ...]) -> None:
        if len(path) > 30:
            raise UntraceableError(f"reads {expression(_word(base), path[:3])}…, which goes on without end")
        self._see(value, base, path)

    def _see_holder(self, value: Any, base: Any, path: tuple[Step, ...]) -> None:
        if id(value) in self._places:
            return
        said = expression(_word(base), path)
        self._places[id(value)] = (base, path)
        self._kept.append(value)
        self._watch(value, said)
        if isinstance(value, (dict, list, tuple, set, frozenset, deque)):
            if isinstance(base, (ModuleType, type)):
                return  # a registry: others add to it, and that is no other call
            if len(value) > MAX_ITEMS:
                raise UntraceableError(
                    f"reads {said}, whose {len(value)} items are too many to check at each call"
                )
            for fact, part, step in _items(value, base, path):
                self._add(fact)
                if step is not None:
                    self._see_part(part, base, (*path, step))
        elif hasattr(value, "__next__") and not isinstance(value, torch.Generator):
            raise UntraceableError(f"reads {said}, an iterator, which each call moves on")
        elif type(value).__module__.split(".")[0] == "numpy" and hasattr(value, "tobytes"):
            raise UntraceableError(
                f"reads {said}, an array of NumPy's: a graph has its values as they are now"
            )
        elif isinstance(value, (SimpleNamespace,)) or type(value).__qualname__ == "Namespace":
            for name, part in vars(value).items():
                self._see_part(part, base, (*path, ("attr", name)))
        elif is_own_module(type(value).__module__) and not isinstance(value, torch.Generator):
            self._add(is_object(base, (*path, ("attr", "__class__")), type(value)))
            self._watch_classes(value)
            self._instrument(type(value))

    def _add(self, fact: Fact) -> None:
        if fact not in self.facts:
            self.facts[fact] = None

    # Writes

    def made(self, module: nn.Module) -> None:
        """The code made ``module`` itself."""
        self._made.add(id(module))
        self._kept.append(module)

    def wrote(self, owner: Any, name: str) -> None:
        """The code sets or deletes an attribute. Raises `UntraceableError` if it is of the model's world."""
        if id(owner) in self._made or id(owner) not in self._places:
            if isinstance(owner, nn.Module) and id(owner) not in self._made:
                raise UntraceableError(
                    f"sets {name!r} of a {type(owner).__name__} that is not one of its submodules"
                )
            return
        if owner is self.module:
            raise UntraceableError(f"changes its attribute {name!r} in its forward")
        base, path = self._places[id(owner)]
        raise UntraceableError(f"changes {expression(_word(base), path)}.{name} in its forward")

    def _watch_classes(self, value: Any) -> None:
        for cls in type(value).__mro__:
            if is_own_module(cls.__module__):
                self._watch(cls, f"the class {cls.__qualname__}")

    def _watch(self, value: Any, said: str) -> None:
        if id(value) not in self._watched and (saved := save(value, is_root=True)) is not None:
            self._watched[id(value)] = saved, said

    def refuse(self, error: UntraceableError) -> None:
        """The code does what no graph can; `check` raises it, where it cannot be raised at once."""
        self._refusal = self._refusal or error

    def check(self) -> None:
        """Raise `UntraceableError` if anything that the code has seen is not as it was."""
        if self._refusal is not None:
            raise self._refusal
        for saved, said in self._watched.values():
            if (what := saved.change()) is not None:
                raise UntraceableError(f"changes {said} ({what}) in its forward")

    def check_registers(self) -> None:
        """Raise `UntraceableError` if the module has other attributes or parts than before."""
        for saved in reversed(self._registers):
            if (what := saved.change()) is not None:
                raise UntraceableError(f"changes {what.replace('its item', 'its attribute')} in its forward")

    def resume(self) -> None:
        """Code of others has run: what it changed is its own affair."""
        for key, (saved, said) in list(self._watched.items()):
            if saved.change() is not None and (again := save(saved.value, is_root=True)) is not None:
                self._first.setdefault(key, saved)
                self._watched[key] = again, said

    def undo(self) -> None:
        """Put back what the code has seen, as it was when it first saw it."""
        for key, (saved, _) in self._watched.items():
            self._first.get(key, saved).restore()
        for saved in self._registers:
            saved.restore()


def _items(value: Any, base: Any, path: tuple[Step, ...]) -> Iterator[tuple[Fact, Any, Step | None]]:
    """The items of a container: a fact of its form, with a part and the step to it where there is one."""
    form = is_object(base, (*path, ("attr", "__class__")), type(value))
    if isinstance(value, dict) and all(map(is_constant, value)):
        yield form, None, None
        fact = equals(base, path, list(value))
        yield Fact(base, path, fact.test.replace("$", "list($)"), fact.objects), None, None
        for key, part in value.items():
            yield form, part, ("item", key)
        return
    yield form, None, None
    yield Fact(base, path, f"len($) == {len(value)}"), None, None
    if isinstance(value, (list, tuple, deque)):
        for i, part in enumerate(value):
            yield form, part, ("item", i)


def _own(owner: Any) -> dict[str, Any]:
    """The ``__dict__`` of an object itself, if it has one."""
    try:
        return object.__getattribute__(owner, "__dict__")  # type: ignore[no-any-return]
    except AttributeError:
        return {}


def _is_data(owner: Any, name: str) -> bool:
    """Whether an attribute is a value rather than a method or a property, whose code is seen itself."""
    if name in _own(owner):
        return True
    for cls in type(owner).__mro__:
        if name in cls.__dict__:
            found = cls.__dict__[name]
            return not hasattr(type(found), "__get__") or isinstance(found, MemberDescriptorType)
    return name in slots_of(type(owner))


def _is_own_class(value: Any) -> bool:
    return isinstance(value, type) and is_own_module(value.__module__)


def _namespace(scope: dict[str, Any]) -> ModuleType | None:
    """The module of Python whose globals these are, if there is one."""
    module = sys.modules.get(str(scope.get("__name__")))
    return module if module is not None and vars(module) is scope else None


def _word(base: Any) -> str:
    if isinstance(base, Self):
        return "self"
    return str(getattr(base, "__name__", type(base).__name__))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
