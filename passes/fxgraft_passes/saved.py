"""One object as it was, for each kind of object that can change; see `snapshot`."""

from __future__ import annotations

import contextvars
import functools
import random
import sys
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fxgraft_passes import _torch
from fxgraft_passes.bits import same_tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), range, slice)
LIBRARIES = frozenset(sys.stdlib_module_names) | {
    *(
        "torch",
        "functorch",
        "numpy",
        "sympy",
        "networkx",
        "fxgraft",
        "fxgraft_passes",
        "hypothesis",
        "_pytest",
    ),
}
"""The packages whose code is not a model's own."""

NOT_THE_MODELS = (
    "_thread", "threading", "queue", "multiprocessing", "concurrent", "asyncio", "logging", "weakref",
    "socket", "torch.optim", "torch.utils.data", "torch.distributed", "torch.fx", "lightning",
    "pytorch_lightning", "accelerate", "fxgraft",
)  # fmt: skip
"""Where classes are from whose objects hold a model, or are shared with other threads."""


_EMPTY = object()


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
        name = _difference(self.before, vars(self.value))
        return None if name is None else f"its attribute {name!r}"

    def restore(self) -> None:
        vars(self.value).clear()
        vars(self.value).update(self.before)


class _OfFunction(Variables):
    """The attributes of a function; it holds its closure and its defaults too."""

    def parts(self) -> Iterable[object]:
        function = self.value
        defaults = (function.__defaults__ or (), function.__kwdefaults__ or {})
        return (*self.before.values(), *(function.__closure__ or ()), *defaults)


class _OfClass(Variables):
    """The variables of a class or of a module of Python: written by name, functions left out."""

    def __init__(self, value: Any):
        super().__init__(value)
        self.before = self._now()

    def _now(self) -> dict[str, Any]:
        return {
            name: held
            for name, held in list(vars(self.value).items())
            if not (name.startswith("__") or isinstance(held, (type, ModuleType)) or _is_function(held))
        }

    def change(self) -> str | None:
        name = _difference(self.before, self._now())
        return None if name is None else f"its attribute {name!r}"

    def restore(self) -> None:
        for name in self._now().keys() - self.before.keys():
            delattr(self.value, name)
        for name, held in self.before.items():
            if vars(self.value).get(name) is not held:
                setattr(self.value, name, held)


class _Slots(Saved):
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
        name = _difference(self._before, self._now())
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


class _Dict(Saved):
    """A dictionary; a module's registers too."""

    def __init__(self, value: Any):
        super().__init__(value)
        self._before = dict(dict.items(value))  # as it is: its class may answer otherwise

    def parts(self) -> Iterable[object]:
        return (*self._before.keys(), *self._before.values(), *_variables_of(self.value))

    def change(self) -> str | None:
        key = _difference(self._before, dict(dict.items(self.value)))
        return None if key is None else f"its item {key!r}"

    def restore(self) -> None:
        kind = OrderedDict if isinstance(self.value, OrderedDict) else dict
        kind.clear(self.value)
        kind.update(self.value, self._before)


class _OfWeak(Saved):
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
        key = _difference(self._before, self._now())
        return None if key is None else f"its item {key!r}"

    def restore(self) -> None:
        self.value.clear()
        self.value.update(self._before)


class _Items(Saved):
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
            if not _is_same(before, now):
                return f"its item {i}"
        return None

    def restore(self) -> None:
        self.value.clear()
        (self.value.update if isinstance(self.value, set) else self.value.extend)(self._before)


class _Tensor(Saved):
    """A tensor: the memory that it stands for, and what is in there. Its gradient is its user's."""

    def __init__(self, value: Tensor):
        super().__init__(value)
        self._memory = value.data
        self._content = None if value.is_meta else value.data.clone()
        self._requires_grad = value.requires_grad

    def change(self) -> str | None:
        now = self.value.data
        if now.shape != self._memory.shape or not _is_same_memory(now, self._memory):
            return "the tensor behind it"
        if self._content is not None and not same_tensor(self._memory, self._content):
            return "its values"
        return None if self.value.requires_grad == self._requires_grad else "whether it requires grad"

    def restore(self) -> None:
        # By .data, which autograd does not count as a change: a graph that waits for backward stays right.
        if self._content is not None and not same_tensor(self._memory, self._content):
            self._memory.copy_(self._content)
        now = self.value.data
        if now.shape != self._memory.shape or not _is_same_memory(now, self._memory):
            self.value.data = self._memory
        if self.value.is_leaf:
            self.value.requires_grad_(self._requires_grad)


class OfContext(Saved):
    """A context variable, as far as it has a value: none can be taken away again."""

    def __init__(self, value: contextvars.ContextVar[Any]):
        super().__init__(value)
        self._before = value.get(_EMPTY)

    def parts(self) -> Iterable[object]:
        return () if self._before is _EMPTY else (self._before,)

    def change(self) -> str | None:
        return None if _is_same(self._before, self.value.get(_EMPTY)) else "its value"

    def restore(self) -> None:
        if self._before is not _EMPTY:
            self.value.set(self._before)


class _State(Saved):
    """What gives its state and takes it back: generators of random numbers, counters of ``itertools``."""

    def __init__(self, value: Any, read: Callable[[], Any], write: Callable[[Any], object]):
        super().__init__(value)
        self._read, self._write = read, write
        self._before = read()

    def change(self) -> str | None:
        now = self._read()
        if isinstance(now, Tensor):
            return None if torch.equal(now, self._before) else "its state"
        return None if repr(now) == repr(self._before) else "its state"

    def restore(self) -> None:
        self._write(self._before)


class _Array(Saved):
    """An array of NumPy's, which is not imported for it."""

    def __init__(self, value: Any):
        super().__init__(value)
        self._before = value.copy()

    def change(self) -> str | None:
        same = self.value.shape == self._before.shape and self.value.tobytes() == self._before.tobytes()
        return None if same else "its values"

    def restore(self) -> None:
        self.value[...] = self._before


class _Cell(Saved):
    """A variable that functions share."""

    def __init__(self, value: CellType):
        super().__init__(value)
        self._before = _content(value)

    def parts(self) -> Iterable[object]:
        return () if self._before is _EMPTY else (self._before,)

    def change(self) -> str | None:
        return None if _is_same(self._before, _content(self.value)) else "its value"

    def restore(self) -> None:
        if self._before is _EMPTY:
            del self.value.cell_contents
        else:
            self.value.cell_contents = self._before


class Variable:
    """A name in a namespace (the globals of a module of Python), as a root of a snapshot."""

    def __init__(self, scope: dict[str, Any], name: str):
        self.scope, self.name = scope, name


class _Variable(Saved):
    """What a name stands for."""

    def __init__(self, value: Variable):
        super().__init__(value)
        self._before = value.scope.get(value.name, _EMPTY)

    def parts(self) -> Iterable[object]:
        return () if self._before is _EMPTY else (self._before,)

    def change(self) -> str | None:
        return None if _is_same(self._before, self.value.scope.get(self.value.name, _EMPTY)) else "its value"

    def restore(self) -> None:
        if self._before is _EMPTY:
            self.value.scope.pop(self.value.name, None)
        else:
            self.value.scope[self.value.name] = self._before


def save(value: Any, is_root: bool = False) -> Saved | None:
    """One object as it is now; None for what cannot change or is not the model's."""
    kind = type(value)
    if isinstance(value, (type, ModuleType)):
        return _OfClass(value) if is_root else None
    if isinstance(value, Tensor):
        return _Tensor(value) if value.layout is torch.strided and not _is_wrapped(value) else None
    if isinstance(value, torch.Generator):
        return _State(value, value.get_state, value.set_state)
    if isinstance(value, CellType):
        return _Cell(value)
    if isinstance(value, Variable):
        return _Variable(value)
    if isinstance(value, nn.Module):
        return Variables(value)
    if isinstance(value, FunctionType):
        return _OfFunction(value) if _is_of_model(value) else None
    if isinstance(value, contextvars.ContextVar):
        return OfContext(value)
    if isinstance(value, (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)):
        return _OfWeak(value)
    if isinstance(value, threading.local):
        return Variables(value)
    if _is_function(value) or isinstance(value, (tuple, frozenset, functools.partial)):
        return None
    if isinstance(value, dict):
        return _Dict(value)
    if isinstance(value, (list, deque, set, bytearray)):
        return _Items(value)
    if kind.__module__.startswith(NOT_THE_MODELS):
        return None
    if kind.__module__.split(".")[0] == "numpy":
        return _of_numpy(value)
    if isinstance(value, random.Random):
        return _State(value, value.getstate, value.setstate)
    if slots_of(kind):
        return _Slots(value)
    return Variables(value) if isinstance(getattr(value, "__dict__", None), dict) else None


def _of_numpy(value: Any) -> Saved | None:
    if hasattr(value, "tobytes") and hasattr(value, "__setitem__"):
        return _Array(value)
    if (bits := getattr(value, "bit_generator", None)) is not None:
        return _State(value, lambda: bits.state, lambda state: setattr(bits, "state", state))
    if hasattr(value, "get_state") and hasattr(value, "set_state"):
        return _State(value, value.get_state, value.set_state)
    return None


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


def _is_of_model(function: FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] not in LIBRARIES


def _is_function(value: Any) -> bool:
    return isinstance(
        value, (FunctionType, BuiltinFunctionType, MethodType, staticmethod, classmethod, property)
    )


def _difference(before: dict[Any, Any], now: Any) -> Any | None:
    """A key at which two dictionaries differ; in a module's registers, one in those."""
    if len(before) == len(now) and all(
        key in now and _is_same(held, now[key]) for key, held in before.items()
    ):
        return None if list(before) == list(now) else next(iter(before), None)
    changed = [key for key in {**before, **now} if key not in before or key not in now]
    changed += [key for key in before if key in now and not _is_same(before[key], now[key])]
    return changed[0]


def _is_same(before: object, now: object) -> bool:
    """The same object, or the same number or text: a new ``1.0`` is no change."""
    if before is now:
        return True
    return isinstance(before, PLAIN) and type(before) is type(now) and repr(before) == repr(now)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return _EMPTY


def _is_wrapped(value: Tensor) -> bool:
    """Whether a tensor has no memory of its own to look at: one of ``torch.func``, or around others."""
    return _torch.is_wrapped_by_transform(value) or is_traceable_wrapper_subclass(value)


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.storage_offset() == b.storage_offset()
        and a.stride() == b.stride()
        and a.dtype == b.dtype
    )
