"""Proxies that know their value in the example run."""

from __future__ import annotations

import dis
import functools
import math
import operator
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.fx as fx

from fxgraft import _torch
from fxgraft.capture._code import is_own


class UntraceableError(Exception):
    """The module's code cannot be written as one graph; the message says why.

    Each is recorded in the trace that it is raised in: the module may catch it, and take another branch.
    """

    def __init__(self, message: str):
        super().__init__(message)
        if _raised:
            _raised[-1].append(self)


_raised: list[list[UntraceableError]] = []
"""For each trace that is under way, outermost first: what was raised in it."""


@contextmanager
def collect_untraceable() -> Iterator[list[UntraceableError]]:
    """A list of each `UntraceableError` that is made inside, caught or not."""
    _raised.append([])
    try:
        yield _raised[-1]
    finally:
        _raised.pop()


class ProxySize(tuple[Any, ...]):
    """The sizes of a tensor, each a proxy: what ``torch.Size`` is of numbers."""

    def numel(self) -> Any:
        """How many elements a tensor of these sizes has."""
        return functools.reduce(operator.mul, self, 1)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return ProxySize(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> Any:
        return ProxySize(super().__add__(other))


_OF_TRACING = (_torch.FAKE_TENSORS, "torch.fx")
"""Modules with classes that replace tensors in traces: those of exporting and compiling, say."""


def _each(kinds: Any) -> Iterator[type]:
    if isinstance(kinds, tuple):
        for kind in kinds:
            yield from _each(kind)
    elif isinstance(kinds, type):
        yield kinds


def is_instance(value: Any, kinds: Any) -> bool:
    """``isinstance``, of the value of a proxy."""
    if isinstance(value, ProxySize):
        return isinstance(torch.Size(), kinds)
    if isinstance(value, kinds):
        return True
    if not isinstance(value, fx.Proxy) or not hasattr(type(value), "_example"):
        return False
    found = isinstance(value._example, kinds)
    if (
        not found
        and (asked := list(_each(kinds)))
        and all(kind.__module__.startswith(_OF_TRACING) for kind in asked)
    ):
        return False  # no graph depends on whether a trace is under way
    value.tracer.fix_kind(value.node, kinds, found)  # type: ignore[attr-defined]
    return found


class ConcreteProxy(fx.Proxy):
    """A proxy that unpacks as its example value would, as far as the structure of that is fixed."""

    @property
    def _example(self) -> Any:
        """Its value in the example run."""
        return self.tracer.values[self.node]  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Any]:
        value = self._example
        unpacked = _unpacked_by(sys._getframe(1))
        if isinstance(value, (tuple, list)):
            self.tracer.fix_form(self.node, "length", unpacked is not None)  # type: ignore[attr-defined]
            return iter([self[i] for i in range(len(value))])  # type: ignore[index]
        if isinstance(value, dict):
            self.tracer.fix_form(self.node, "keys")  # type: ignore[attr-defined]
            return iter(list(value))
        if isinstance(value, (KeysView, ValuesView, ItemsView)):
            return iter(self.tracer.create_proxy("call_function", list, (self,), {}))
        if isinstance(value, torch.Tensor) and unpacked is not None:
            bool(self.size(0) == unpacked)  # what the graph relies on, it checks
            parts = self.unbind(0)
            return iter([parts[i] for i in range(unpacked)])
        raise UntraceableError(f"iterates over {self.node}, and how often depends on the input")

    def __getattr__(self, name: str) -> Any:
        value = self._example
        if isinstance(value, torch.Tensor):
            if name == "shape":
                return self.size()
            if name in ("ndim", "layout"):
                self.tracer.fix_fact(self.node, name)  # type: ignore[attr-defined]
                return getattr(value, name)
        if not (name.startswith("__") and name.endswith("__")) and not self.tracer.has(value, name):  # type: ignore[attr-defined]
            self.tracer.fix_missing(self.node, name)  # type: ignore[attr-defined]
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        # At once, where torch.fx would wait for the first use: what follows may look at its value.
        kind = torch.Tensor if isinstance(value, torch.Tensor) else value
        if not name.startswith("__") and not callable(getattr(kind, name, len)):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("node", "tracer"):
            return super().__setattr__(name, value)
        if isinstance(self._example, torch.Tensor):
            raise UntraceableError(f"sets the attribute {name!r} of the tensor {self.node}")
        self.tracer.create_proxy("call_function", setattr, (self, name, value), {})
        return None

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        value = self._example
        if isinstance(value, (tuple, list, dict, KeysView, ValuesView, ItemsView)):
            self.tracer.fix_form(self.node, "keys" if isinstance(value, dict) else "length")  # type: ignore[attr-defined]
            return len(value)
        raise UntraceableError(f"takes the length of {self.node}, which depends on the input")

    def __index__(self) -> int:
        raise UntraceableError(f"needs {self.node} as a Python integer, and it depends on the input")

    def __float__(self) -> float:
        raise UntraceableError(f"needs {self.node} as a Python number, and it depends on the input")

    __int__ = __index__

    def __round__(self, *digits: Any) -> Any:
        return self._apply(round, *digits)

    def __ceil__(self) -> Any:
        return self._apply(math.ceil)

    def __floor__(self) -> Any:
        return self._apply(math.floor)

    def __trunc__(self) -> Any:
        return self._apply(math.trunc)

    def _apply(self, function: Any, *more: Any) -> Any:
        """Record a call of one of Python's own functions on its value, a number."""
        return self.tracer.create_proxy("call_function", function, (self, *more), {})

    def __contains__(self, item: Any) -> bool:
        value = self._example
        if isinstance(value, (torch.Tensor, int, float)) or isinstance(item, fx.Proxy):
            raise UntraceableError(f"asks whether something is in {self.node}, which depends on the input")
        self.tracer.fix_contains(self.node, item)  # type: ignore[attr-defined]
        return item in value

    def __str__(self) -> str:
        return self._text(str, sys._getframe(1))

    def __repr__(self) -> str:
        return self._text(repr, sys._getframe(1))

    def _text(self, of: Callable[[Any], str], asking: FrameType) -> str:
        if not is_own(asking):
            return super().__repr__()
        value: Any = self._example
        if not isinstance(value, (int, torch.dtype, torch.device)):
            raise UntraceableError(f"makes text of {self.node}, which depends on the input")
        bool(self.__eq__(value))  # what the graph relies on, it checks
        return of(value)

    def __format__(self, form: str) -> str:
        raise UntraceableError(f"makes text of {self.node}, which depends on the input")


def _unpacked_by(frame: FrameType) -> int | None:
    """Into how many names the code of ``frame`` unpacks a value just now (``q, k, v = x``), or None."""
    code = frame.f_code.co_code
    if dis.opname[code[frame.f_lasti]] != "UNPACK_SEQUENCE":
        return None
    return code[frame.f_lasti + 1]
