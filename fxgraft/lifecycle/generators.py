"""The generators of random numbers that a function draws from, beside torch's and Python's global streams."""

from __future__ import annotations

import functools
import inspect
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

MAX_OBJECTS = 20_000
"""How many objects are looked at: what is further away is not found."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, ModuleType, Tensor, nn.Module)


def generators_of(function: Callable[..., object]) -> list[object]:
    """What ``function`` may draw from: its variables, the globals that it names, and what these hold.

    A loader of data that shuffles has one in its sampler, say. What a model holds is left out: that is the
    model's.
    """
    found: list[object] = []
    seen: dict[int, object] = {}  # holds them, so that no id is given twice
    waiting: deque[object] = deque([function])
    while waiting and len(seen) < MAX_OBJECTS:
        value = waiting.popleft()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value
        if _is_generator(value):
            found.append(value)
        else:
            waiting.extend(_held(value))
    return found


def _is_generator(value: object) -> bool:
    if isinstance(value, (torch.Generator, random.Random)):
        return True
    kind = type(value)
    return kind.__module__.startswith("numpy.random") and kind.__name__ in ("Generator", "RandomState")


def _held(value: Any) -> Iterable[object]:
    if isinstance(value, FunctionType):
        named = (value.__globals__.get(name) for name in _names(value.__code__))
        return (*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__, *named)
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, CellType):
        return _content(value)
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return value
    if isinstance(value, dict):
        return value.values()
    variables = getattr(value, "__dict__", None)
    call = inspect.getattr_static(type(value), "__call__", None)  # an object that is called as a function is
    return (*(variables.values() if isinstance(variables, dict) else ()), call)


def _content(cell: CellType) -> Iterable[object]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # empty
        return ()


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
