"""What a model's code names outside of its modules: globals, closures, defaults, variables of classes.

A forward may write there, so a run that is to leave no trace must put it back: a list of auxiliary losses in
a module of Python, a counter in a class. The names are gathered while the example call runs, from the
bytecode of each function of the model's own code that is entered; the objects behind them are looked up when
needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import nn

from fxgraft.capture._code import functions_of, is_own_class, is_own_module, names_in, reached
from fxgraft_passes.saved_names import Variable
from fxgraft_passes.snapshot import Snapshot

_FIXED = (FunctionType, ModuleType, bool, int, float, complex, str, bytes, type(None), property)


class ExternalState:
    """The names, and the objects that they refer to.

    Attributes:
        names: the module of Python, with the name of a global and of what is read of it.
        written: those of globals that the code assigns.
        methods: those that were entered, by class and name, for what they close over and hold.
    """

    def __init__(self) -> None:
        self.names: dict[tuple[str, ...], None] = {}
        self.written: dict[tuple[str, str], None] = {}
        self.methods: dict[tuple[type, str], None] = {}

    def roots(self, model: nn.Module) -> list[object]:
        """What may be written into, as it is now: for `fxgraft_passes.untouched`."""
        found: list[object] = []
        for cls in {cls for module in model.modules() for cls in type(module).__mro__}:
            if is_own_class(cls):
                found.append(cls)
        # A compiled module of TorchScript has none.
        methods = {getattr(type(module), "forward", None) for module in model.modules()} - {None}
        methods.update(*(_functions_under(cls, name) for cls, name in self.methods))
        for function in methods:
            found += _of_closure(function)
        for module, name in self.written:
            if module in sys.modules:
                found.append(Variable(vars(sys.modules[module]), name))
        for module, *chain in self.names:
            if module in sys.modules:
                found += _behind(vars(sys.modules[module]), chain)
        return found


class ExternalStateWatch:
    """Gathers the names in one run, and puts back what is behind them."""

    def __init__(self, external_state: ExternalState, model: nn.Module):
        self._external_state = external_state
        self._entered: set[CodeType] = set()
        self._before = [Snapshot(external_state.roots(model))]

    def enter(self, frame: FrameType) -> None:
        """A function of the model's own code is entered, and has done nothing yet."""
        code = frame.f_code
        if code in self._entered:
            return
        self._entered.add(code)
        scope = frame.f_globals
        module = str(scope.get("__name__", ""))
        names = names_in(code)
        found: list[object] = [Variable(scope, name) for name in names.written]
        self._external_state.written |= {(module, name): None for name in names.written}
        if (method := reached(frame)) is not None:
            self._external_state.methods[method.cls, method.name] = None
            for function in functions_of(method.held):
                found += _of_closure(function)
        for chain in names.read:
            if behind := list(_behind(scope, list(chain))):
                self._external_state.names[(module, *chain)] = None
                found += behind
        if found:
            self._before.append(Snapshot(found))

    def restore(self) -> None:
        """Put back what was found, as it was when it was found."""
        for snapshot in reversed(self._before):
            snapshot.restore()


def _functions_under(cls: type, name: str) -> Iterator[FunctionType]:
    """The functions that a class and its bases have under a name."""
    for base in cls.__mro__:
        yield from functions_of(base.__dict__.get(name))


def _behind(scope: dict[str, Any], chain: list[str]) -> Iterator[object]:
    """What can be written into behind a global and the attributes that are read of it."""
    value: Any = scope.get(chain[0])
    for name in chain[1:]:
        if not isinstance(value, ModuleType) or not is_own_module(value.__name__):
            break
        value = vars(value).get(name)
    if isinstance(value, FunctionType):
        yield from _of_closure(value)
    elif not isinstance(value, _FIXED) and (not isinstance(value, type) or is_own_module(value.__module__)):
        yield value


def _of_closure(function: Any) -> Iterable[object]:
    while isinstance(function, FunctionType) and is_own_module(function.__module__ or ""):
        yield function
        yield from function.__closure__ or ()
        yield from (
            default for default in function.__defaults__ or () if isinstance(default, (list, dict, set))
        )
        function = getattr(function, "__wrapped__", None)
