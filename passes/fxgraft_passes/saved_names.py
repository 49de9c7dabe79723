"""What names and containers hold, as it was: variables, slots, items, closures, globals.

One object as it was is a `Saved`; `fxgraft_passes.saved` chooses its kind.
"""

from __future__ import annotations

import contextvars
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), range, slice)
EMPTY = object()


class Saved:
    """One object as it was. Subclasses know a kind of object.

    Attributes:
        value: the object.
    """

    def __init__(self, value: Any):
        self.value = value

    def parts(self) -> Iterable[object]:
        """What it holds."""
        return ()

    def change(self) -> str | None:
        """What is not as it was, in words; None if nothing."""
        raise NotImplementedError

    def restore(self) -> None:
        """Put it back."""
        raise NotImplementedError


class Variables(Saved):
    """The ``__dict__`` of an object."""

    def __init__(self, value: Any):
        super().__init__(value)
        self.before = dict(vars(value))

    def parts(self) -> Iterable[object]:
        return self.before.values()

    def change(self) -> str | None:
        name = difference(self.before, vars(self.value))
        return None if name is None else f"its attribute {name!r}"

    def restore(self) -> None:
        vars(self.value).clear()
        vars(self.value).update(self.before)


class SavedFunction(Variables):
    """The attributes of a function; it holds its closure and its defaults too."""

    def parts(self) -> Iterable[object]:
        function = self.value
        defaults = (function.__defaults__ or (), function.__kwdefaults__ or {})
        return (*self.before.values(), *(function.__closure__ or ()), *defaults)


class SavedClass(Variables):
    """The variables of a class or of a module of Python: written by name, functions left out."""

    def __init__(self, value: Any):
        super().__init__(value)
        self.before = self._now()

    def _now(self) -> dict[str, Any]:
        return {
            name: held
            for name, held in list(vars(self.value).items())
            if not (name.startswith("__") or isinstance(held, (type, ModuleType)) or is_function(held))
        }

    def change(self) -> str | None:
        name = difference(self.before, self._now())
        return None if name is None else f"its attribute {name!r}"

    def restore(self) -> None:
        for name in self._now().keys() - self.before.keys():
            delattr(self.value, name)
        for name, held in self.before.items():
            if vars(self.value).get(name) is not held:
                setattr(self.value, name, held)


class PythonSlots(Saved):
    """Values in the ``__slots__`` of an object, beside its ``__dict__`` if it has one."""

    def __init__(self, value: Any):
        super().__init__(value)
        self._variables = Variables(value) if hasattr(value, "__dict__") else None
        self._before = self._now()

    def _now(self) -> dict[str, Any]:
        return {
            name: getattr(self.value, name) for name in slots_of(type(self.value)) if _has(self.value, name)
        }

    def parts(self) -> Iterable[object]:
        yield from self._before.values()
        if self._variables is not None:
            yield from self._variables.parts()

    def change(self) -> str | None:
        name = difference(self._before, self._now())
        if name is not None:
            return f"its attribute {name!r}"
        return self._variables.change() if self._variables is not None else None

    def restore(self) -> None:
        for name in self._now().keys() - self._before.keys():
            object.__delattr__(self.value, name)
        for name, held in self._before.items():
            object.__setattr__(self.value, name, held)
        if self._variables is not None:
            self._variables.restore()


class Dict(Saved):
    """A dictionary; a module's registers too."""

    def __init__(self, value: Any):
        super().__init__(value)
        self._before = dict(dict.items(value))  # as it is: its class may answer otherwise

    def parts(self) -> Iterable[object]:
        return (*self._before.keys(), *self._before.values(), *_variables_of(self.value))

    def change(self) -> str | None:
        if not self._before and dict.__len__(self.value) == 0:
            return None  # as most registers of modules are
        key = difference(self._before, dict(dict.items(self.value)))
        return None if key is None else f"its item {key!r}"

    def added(self) -> dict[Any, Any]:
        """The entries whose keys are new."""
        return {key: held for key, held in dict.items(self.value) if key not in self._before}

    def restore(self) -> None:
        kind = OrderedDict if isinstance(self.value, OrderedDict) else dict
        kind.clear(self.value)
        kind.update(self.value, self._before)


class SavedWeakContainer(Saved):
    """A dictionary or a set that holds weakly; what it held lives as long as this."""

    def __init__(self, value: Any):
        super().__init__(value)
        self._before = self._now()

    def _now(self) -> dict[Any, Any]:
        is_set = isinstance(self.value, weakref.WeakSet)
        return dict.fromkeys(self.value) if is_set else dict(self.value.items())

    def parts(self) -> Iterable[object]:
        return (*self._before.keys(), *self._before.values())

    def change(self) -> str | None:
        key = difference(self._before, self._now())
        return None if key is None else f"its item {key!r}"

    def restore(self) -> None:
        self.value.clear()
        self.value.update(self._before)


class Items(Saved):
    """A list, a deque, a set or a bytearray."""

    def __init__(self, value: Any):
        super().__init__(value)
        self._before = list(iter(value))

    def parts(self) -> Iterable[object]:
        return (*self._before, *_variables_of(self.value))

    def change(self) -> str | None:
        if len(self._before) != len(self.value):
            return f"its length: it had {len(self._before)} items and has {len(self.value)}"
        if isinstance(self.value, set):
            return None if set(map(id, self._before)) == set(map(id, self.value)) else "its items"
        for i, (before, now) in enumerate(zip(self._before, self.value, strict=True)):
            if not is_same(before, now):
                return f"its item {i}"
        return None

    def restore(self) -> None:
        self.value.clear()
        (self.value.update if isinstance(self.value, set) else self.value.extend)(self._before)


class Cell(Saved):
    """A variable that functions share."""

    def __init__(self, value: CellType):
        super().__init__(value)
        self._before = _content(value)

    def parts(self) -> Iterable[object]:
        return () if self._before is EMPTY else (self._before,)

    def change(self) -> str | None:
        return None if is_same(self._before, _content(self.value)) else "its value"

    def restore(self) -> None:
        if self._before is EMPTY:
            del self.value.cell_contents
        else:
            self.value.cell_contents = self._before


class Variable:
    """A name in a namespace (the globals of a module of Python), as a root of a snapshot."""

    def __init__(self, scope: dict[str, Any], name: str):
        self.scope, self.name = scope, name


class SavedVariable(Saved):
    """The object that a name refers to."""

    def __init__(self, value: Variable):
        super().__init__(value)
        self._before = value.scope.get(value.name, EMPTY)

    def parts(self) -> Iterable[object]:
        return () if self._before is EMPTY else (self._before,)

    def change(self) -> str | None:
        return None if is_same(self._before, self.value.scope.get(self.value.name, EMPTY)) else "its value"

    def restore(self) -> None:
        if self._before is EMPTY:
            self.value.scope.pop(self.value.name, None)
        else:
            self.value.scope[self.value.name] = self._before


class SavedContextVariable(Saved):
    """A context variable, as far as it has a value: none can be taken away again."""

    def __init__(self, value: contextvars.ContextVar[Any]):
        super().__init__(value)
        self._before = value.get(EMPTY)

    def parts(self) -> Iterable[object]:
        return () if self._before is EMPTY else (self._before,)

    def change(self) -> str | None:
        return None if is_same(self._before, self.value.get(EMPTY)) else "its value"

    def restore(self) -> None:
        if self._before is not EMPTY:
            self.value.set(self._before)


def slots_of(kind: type) -> tuple[str, ...]:
    """The names in the ``__slots__`` of a class and of its bases."""
    found: list[str] = []
    for cls in kind.__mro__:
        names = cls.__dict__.get("__slots__", ())
        found += [names] if isinstance(names, str) else list(names)
    return tuple(name for name in found if name not in ("__dict__", "__weakref__") and hasattr(kind, name))


def _has(value: Any, name: str) -> bool:
    try:
        object.__getattribute__(value, name)
    except AttributeError:
        return False
    return True


def _variables_of(container: Any) -> Iterable[object]:
    return vars(container).values() if hasattr(container, "__dict__") else ()


def is_function(value: Any) -> bool:
    """Whether it is code, of whatever kind, or a property."""
    return isinstance(
        value, (FunctionType, BuiltinFunctionType, MethodType, staticmethod, classmethod, property)
    )


def difference(before: dict[Any, Any], now: Any) -> Any | None:
    """A key at which two dictionaries differ; in a module's registers, one in those."""
    if _has_same_values(before, now):
        return None if list(before) == list(now) else next(iter(before), None)
    changed = [key for key in {**before, **now} if key not in before or key not in now]
    changed += [key for key in before if key in now and not is_same(before[key], now[key])]
    return changed[0]


def _has_same_values(before: dict[Any, Any], now: Any) -> bool:
    if len(before) != len(now):
        return False
    for key, held in before.items():  # no generator: this runs for each register of each module
        there = now.get(key, EMPTY)
        if there is not held and not is_same(held, there):
            return False
    return True


def is_same(before: object, now: object) -> bool:
    """The same object, or the same number or text: a new ``1.0`` is no change."""
    if before is now:
        return True
    return isinstance(before, PLAIN) and type(before) is type(now) and repr(before) == repr(now)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return EMPTY
