"""What the code of one region reads of the world, and what it writes into it.

A `ReadRecorder` is told of each attribute that is read and each function that is entered (see `instruments`),
while its region's own code runs. What was read becomes a `Fact` (see `findings`); what holds other things is
looked at again when the code is left: if it has changed, the forward does more than compute a result, and its
region is refused.
"""

from __future__ import annotations

import contextvars
import functools
import os
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft.capture.code import CACHED, Method, functions_of, is_own_class, is_own_module, names_in, reached
from fxgraft.capture.facts import Fact, Self, Step, equals, expression, is_constant, is_object, steps_to
from fxgraft.capture.findings import FUNCTIONS, REGISTERS, Findings, Place, content_of, is_container, word
from fxgraft.capture.proxy import UntraceableError
from fxgraft_passes.saved import save
from fxgraft_passes.saved_names import OfContext, Variable, slots_of

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) | {"forward", "dump_patches", "call_super_init"}


class ReadRecorder(Findings):
    """Watches the code of one call of ``module``.

    Args:
        module: the region's.
        instrument: lets the recorder be told what is read of objects of that class from now on.
    """

    def __init__(self, module: nn.Module, instrument: Callable[[type], None]):
        super().__init__(instrument)
        self.module = module
        self._refusal: UntraceableError | None = None
        self._made: set[int] = set()
        self._entered: set[object] = set()
        self._kept_names: set[str] = set()
        self._texts: set[str] = set()
        self._contexts: dict[int, OfContext] = {}
        self._bypassed: list[tuple[dict[str, Any], str, Any]] = []
        for name, child in module.named_modules():
            self._places[id(child)] = (Self(), steps_to(name))
        # These have an entry for each part of the module, and are compared once, at the end.
        held = (module, *(module.__dict__[register] for register in REGISTERS))
        self._registers = [saved for one in held if (saved := save(one)) is not None]
        self._watch_classes(module)
        self._name_classes(module)
        self.know(type(module).forward, (type(module), (("attr", "forward"),)))

    # Reads

    def read(self, owner: Any, name: str, value: Any) -> None:
        """The code read the attribute ``name`` of ``owner``."""
        place = self._places.get(id(owner))
        if name in _OF_EVERY_MODULE and isinstance(owner, nn.Module):
            if name == "training" and owner is not self.module and place is not None:
                self._read_mode(owner, place)
            return
        if not _is_data(owner, name):
            if place is not None:
                self._read_method(owner, name, value, place)
            return
        if place is None:
            if isinstance(owner, nn.Module) and id(owner) not in self._made:
                raise UntraceableError(
                    f"reads {name!r} of a {type(owner).__name__} that is not one of its submodules"
                )
            return
        base, path = place
        if isinstance(value, Tensor):
            self._read_part(name, value, place)
        # A class that is named in a class is part of the code.
        self.see(
            value, base, (*path, ("attr", name)), of_code=isinstance(value, type) and name not in _own(owner)
        )

    def _read_mode(self, owner: nn.Module, place: Place) -> None:
        word = "is" if owner.training == self.module.training else "is not"
        self.add(Fact(Self(), (), f"{expression('$', place[1])}.training {word} $.training"))

    def _read_method(self, owner: Any, name: str, value: Any, place: Place) -> None:
        """A method, which another may stand in for: of the class, or of this object alone."""
        base, path = place
        if isinstance(value, MethodType) and isinstance(value.__func__, FunctionType):
            if is_own_module(str(value.__func__.__module__)):
                steps = (*path, ("attr", name), ("attr", "__func__"))
                self.add(self._of(is_object(base, steps, value.__func__)))
        elif isinstance(value, FunctionType) and is_own_module(str(value.__module__)):
            self.add(self._of(is_object(base, (*path, ("attr", name)), value)))
            self.know(value, (value, ()))

    def _read_part(self, name: str, value: Any, place: Place) -> None:
        """A parameter, buffer, submodule or tensor that the code may look at, and not only call."""
        base, path = place
        if is_container(value):
            found = (*path, ("attr", name))
            if isinstance(value, (nn.ModuleDict, nn.ParameterDict)):
                self.add(Fact(base, found, f"list($.keys()) == {list(value.keys())!r}"))
            elif name in self._kept_names or not isinstance(value, nn.Sequential):
                self.add(Fact(base, found, f"len($) == {len(value)}"))
        elif name in self._kept_names:
            self.add(Fact(base, (*path, ("attr", name)), "$ is not None"))

    def read_all(self, owner: Any) -> None:
        """The code looks at all variables of an object."""
        place, held = self._places.get(id(owner)), dict(_own(owner))
        for name, value in held.items():
            if not (isinstance(owner, nn.Module) and name in _OF_EVERY_MODULE):
                self.read(owner, name, value)
        if place is None:
            return
        base, path = place
        if not isinstance(owner, nn.Module):
            self.add(self._of(Fact(base, (*path, ("attr", "__dict__")), f"list($) == {list(held)!r}")))
        else:  # a host keeps things of its own there
            for name in self._texts - held.keys():
                self.add(Fact(base, (*path, ("attr", "__dict__")), f"{name!r} not in $"))

    def found(self, owner: Any, name: str, value: Any) -> None:
        """What the ``__getattr__`` of an object's class came to, by whatever way."""
        place = self._places.get(id(owner))
        if place is not None and not isinstance(value, (*FUNCTIONS, MethodType)):
            self.see(value, place[0], (*place[1], ("attr", name)))

    def missed(self, owner: Any, name: str) -> None:
        """The code asked ``owner`` for an attribute that is not among its own."""
        place = self._places.get(id(owner))
        if place is None:
            return
        base, path = place
        if isinstance(owner, nn.Module):
            for register in REGISTERS:
                if name in owner.__dict__.get(register, ()):
                    held = owner.__dict__[register][name]
                    if held is None:
                        self.add(equals(base, (*path, ("attr", name)), None))
                    else:
                        self._read_part(name, held, place)
                    return
            if type(owner).__getattr__ is not nn.Module.__getattr__:
                # Its own code tells, and what that reads is seen; as long as it is asked.
                self.add(Fact(base, path, f"{name!r} not in $.__dict__"))
                return
        elif hasattr(type(owner), "__getattr__"):
            return
        self.add(self._of(Fact(base, path, f"not hasattr($, {name!r})")))

    def asked(self, function: Any, value: Any) -> None:
        """The code asked ``function``, which takes no arguments, for a state of torch's."""
        fact = equals(function, (), value)
        self.add(Fact(function, (), fact.test.replace("$", "$()"), fact.objects))

    def asked_autocast(self) -> None:
        """The code asked whether and how autocast is on."""
        for device in {"cpu", *(p.device.type for p in self.module.parameters())}:
            if device == "meta":
                continue
            for function in (torch.is_autocast_enabled, torch.get_autocast_dtype):
                fact = equals(function, (), function(device))
                self.add(Fact(function, (), fact.test.replace("$", f"$({device!r})"), fact.objects))

    def read_environment(self, environment: Any, key: str) -> None:
        """The code read a variable of the environment."""
        fact = equals(os, (), environment.get(key))
        self.add(Fact(os, (), fact.test.replace("$", f"$.environ.get({key!r})"), fact.objects))

    def used_context(self, variable: contextvars.ContextVar[Any], method: str) -> None:
        """The code calls a method of a context variable; what it has set itself it may read."""
        if method != "get":
            self._contexts.setdefault(id(variable), OfContext(variable))
        elif id(variable) not in self._contexts:
            self._kept.append(variable)
            self.see(variable.get(None), variable, (("call", "get"),))

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
            self.name_bases()
        self.know_names(names.attributes)
        for chain in names.read:
            self._read_global(scope, chain)
        for name in names.written:
            self._watch(Variable(scope, name), f"the global {name!r}")
        for name in names.imported:
            self.imported(name)
        self._reach(frame)
        if code in self._functions:
            self._read_closure(code)
        if names.stored:
            self._watch_functions(names.attributes)

    def imported(self, name: str) -> None:
        """The code imports a module of Python."""
        if is_own_module(name) and (module := sys.modules.get(name)) is not None:
            self.name(module, (module, ()))

    def asked_for_class(self, module: nn.Module) -> None:
        """The code asked of what class a module is."""
        place = self._places.get(id(module))
        if place is not None and module is not self.module:
            base, path = place
            self.add(self._of(is_object(base, (*path, ("attr", "__class__")), type(module))))

    def _reach(self, frame: FrameType) -> None:
        """By which class, or which item of a global dictionary, the function came to be called."""
        if (method := reached(frame)) is not None:
            path = _path_of(method)
            held = functools.reduce(_follow, path, method.cls)
            self.add(is_object(method.cls, path, held, of_code=True))
            self.know(held, (method.cls, path))
        for registry, (base, path) in self._registries:
            for key, held in registry.items():
                if any(function.__code__ is frame.f_code for function in functions_of(held)):
                    step = ("item", key) if isinstance(key, (str, int)) else None
                    if step is not None:
                        self.add(is_object(base, (*path, step), held, of_code=True))
                        self.know(held, (base, (*path, step)))

    def _watch_functions(self, names: frozenset[str]) -> None:
        """The code sets attributes: perhaps of functions."""
        for owner, _ in list(self._named.values()):
            held = vars(owner) if isinstance(owner, type) else {}
            for function in [owner, *(held[name] for name in held.keys() & names)]:
                if isinstance(function, FunctionType):
                    self._watch(function, f"the function {function.__qualname__}")

    def _read_global(self, scope: dict[str, Any], chain: tuple[str, ...]) -> None:
        name, *attributes = chain
        if name not in scope or scope.get("__builtins__") is None:
            return
        value = scope[name]
        if str(getattr(value, "__module__", "")).startswith("fxgraft.capture."):
            return  # a stand-in of ours
        module = _namespace(scope)
        base, path = (scope, (("item", name),)) if module is None else (module, (("attr", name),))
        while attributes and (isinstance(value, ModuleType) or is_own_class(value)):
            owner, name = value, attributes.pop(0)
            if isinstance(owner, ModuleType) and not is_own_module(owner.__name__):
                return
            if is_own_class(owner):
                self.add(is_object(base, path, owner, of_code=True))
                self.know(owner, (owner, ()))
                return  # what the code has the names of
            if name not in vars(owner):
                return
            value, base, path = vars(owner)[name], owner, (("attr", name),)
        if isinstance(value, ModuleType):
            if is_own_module(value.__name__):
                self.name(value, (value, ()))
        elif isinstance(value, (FunctionType, CACHED)) or is_own_class(value):
            self.add(is_object(base, path, value, of_code=True))
            self.know(value, (base, path))
            if isinstance(value, CACHED) and scope.get(chain[0]) is value:
                self._bypass(scope, chain[0], value)
        elif not isinstance(value, (type, property, classmethod, staticmethod)):
            self.see(value, base, path, of_code=True)

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
            self._watch(cell, f"the variable {code.co_freevars[i]!r} of a closure")
            steps = (*path, ("attr", "__closure__"), ("item", i), ("attr", "cell_contents"))
            held = content_of(cell)
            self.see(held, base, steps, of_code=isinstance(held, FUNCTIONS))
        for name in ("__defaults__", "__kwdefaults__"):
            defaults = getattr(function, name)
            if defaults and is_constant(defaults):
                self.add(self._of(equals(base, (*path, ("attr", name)), _copied(defaults)), always=True))
            for held in defaults.values() if isinstance(defaults, dict) else defaults or ():
                if isinstance(held, (list, dict, set)):
                    self._watch(held, f"a default of {function.__qualname__}")
            if defaults and not is_constant(defaults):
                parts = defaults.items() if isinstance(defaults, dict) else enumerate(defaults)
                for key, held in parts:
                    if not isinstance(held, FUNCTIONS):
                        self.see(held, base, (*path, ("attr", name), ("item", key)))

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
        raise UntraceableError(f"changes {expression(word(base), path)}.{name} in its forward")

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
        for context in self._contexts.values():
            if context.change() is not None:
                raise UntraceableError(f"sets the context variable {context.value.name!r} in its forward")
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
        self.release()
        for key, (saved, _) in self._watched.items():
            self._first.get(key, saved).restore()
        for saved in (*self._registers, *self._contexts.values()):
            saved.restore()


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
