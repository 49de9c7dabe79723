"""What the code of one region reads and writes outside of its inputs.

A `ReadRecorder` is notified of each attribute read and each function entered (`_instruments`) while its
region's own code runs. What was read becomes a `Fact` (see `_findings`); what holds other things is looked at
again when the code is left: if it has changed, the forward does more than compute a result, and its region is
refused.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable
from types import FunctionType, MemberDescriptorType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft.capture._code import is_own_module
from fxgraft.capture._code_reads import CodeReads
from fxgraft.capture._contents import FUNCTIONS, is_container, name_of
from fxgraft.capture._facts import Fact, Self, equals, expression, is_object, steps_to
from fxgraft.capture._findings import REGISTERS, Place
from fxgraft.capture._proxy import UntraceableError
from fxgraft_passes import devices
from fxgraft_passes.saved import save
from fxgraft_passes.saved_names import SavedContextVariable, slots_of

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) | {"forward", "dump_patches", "call_super_init"}


class ReadRecorder(CodeReads):
    """Watches the code of one call of ``module``.

    Args:
        module: the region's.
        instrument: makes the recorder see what is read of objects of that class from now on.
    """

    def __init__(self, module: nn.Module, instrument: Callable[[type], None]):
        super().__init__(instrument)
        self.module = module
        self._refusal: UntraceableError | None = None
        self._made: set[int] = set()
        self._contexts: dict[int, SavedContextVariable] = {}
        for name, child in module.named_modules():
            self._places[id(child)] = (Self(), steps_to(name))
        # These have an entry for each part of the module, and are compared once, at the end.
        held = (module, *(module.__dict__[register] for register in REGISTERS))
        self._registers = [saved for one in held if (saved := save(one)) is not None]
        self._save_classes(module)
        self._watch_class_attributes(module)
        self.record_code(type(module).forward, (type(module), (("attr", "forward"),)))

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
        self.record(
            value, base, (*path, ("attr", name)), of_code=isinstance(value, type) and name not in _own(owner)
        )

    def _read_mode(self, owner: nn.Module, place: Place) -> None:
        word = "is" if owner.training == self.module.training else "is not"
        self.add(Fact(Self(), (), f"{expression('$', place[1])}.training {word} $.training"))

    def _read_method(self, owner: Any, name: str, value: Any, place: Place) -> None:
        """A method, which may be replaced: in the class, or on this object alone."""
        base, path = place
        if isinstance(value, MethodType) and isinstance(value.__func__, FunctionType):
            if is_own_module(str(value.__func__.__module__)):
                steps = (*path, ("attr", name), ("attr", "__func__"))
                self.add(self._of(is_object(base, steps, value.__func__)))
        elif isinstance(value, FunctionType) and is_own_module(str(value.__module__)):
            self.add(self._of(is_object(base, (*path, ("attr", name)), value)))
            self.record_code(value, (value, ()))

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
            self.record(value, place[0], (*place[1], ("attr", name)))

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
        for device in devices.with_autocast(self.module.parameters()):
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
            self._contexts.setdefault(id(variable), SavedContextVariable(variable))
        elif id(variable) not in self._contexts:
            self._kept.append(variable)
            self.record(variable.get(None), variable, (("call", "get"),))

    def asked_for_class(self, module: nn.Module) -> None:
        """The code asked of what class a module is."""
        place = self._places.get(id(module))
        if place is not None and module is not self.module:
            base, path = place
            self.add(self._of(is_object(base, (*path, ("attr", "__class__")), type(module))))

    # Writes

    def made(self, module: nn.Module) -> None:
        """The code made ``module`` itself."""
        self._made.add(id(module))
        self._kept.append(module)

    def wrote(self, owner: Any, name: str) -> None:
        """The code sets or deletes an attribute. Raises `UntraceableError` if the model can reach it."""
        if id(owner) in self._made or id(owner) not in self._places:
            if isinstance(owner, nn.Module) and id(owner) not in self._made:
                raise UntraceableError(
                    f"sets {name!r} of a {type(owner).__name__} that is not one of its submodules"
                )
            return
        if owner is self.module:
            raise UntraceableError(f"changes its attribute {name!r} in its forward")
        base, path = self._places[id(owner)]
        raise UntraceableError(f"changes {expression(name_of(base), path)}.{name} in its forward")

    def refuse(self, error: UntraceableError) -> None:
        """The code does what no graph can; `check` raises it, where it cannot be raised at once."""
        self._refusal = self._refusal or error

    def check(self) -> None:
        """Raise `UntraceableError` if anything that the code has seen is not as it was."""
        if self._refusal is not None:
            raise self._refusal
        for saved, said in self._saved.values():
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
        for key, (saved, said) in list(self._saved.items()):
            if saved.change() is not None and (again := save(saved.value, is_root=True)) is not None:
                self._first.setdefault(key, saved)
                self._saved[key] = again, said

    def undo(self) -> None:
        """Put back what the code has seen, as it was when it first saw it."""
        self.release()
        for key, (saved, _) in self._saved.items():
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
