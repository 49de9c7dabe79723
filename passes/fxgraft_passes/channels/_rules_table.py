"""The table of operations, and what its rules share.

``RULES`` is all that is known of operations: a function of torch -> what it does to dimensions. A rule that
raises `Unknown` does not know this form of the call; then nothing that the call touches can grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxgraft_passes.channels._analysis import Analysis
from fxgraft_passes.channels.recording import Operation

Rule = Callable[[Analysis, Operation], None]

RULES: dict[Any, Rule] = {}
"""Function -> rule."""

_NAMESPACES = (torch.Tensor, torch, F, torch.special, torch.functional)


class Unknown(ValueError):  # noqa: N818 (it is caught at once, and no error)
    """A rule does not know this form of a call."""


def rule(names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for functions of these names, wherever torch has them."""

    def enter(function: Rule) -> Rule:
        for name in names.split():
            for namespace in _NAMESPACES:
                if (target := getattr(namespace, name, None)) is not None:
                    RULES[target] = function
        return function

    return enter


_MISSING = object()


def given(operation: Operation, place: int, name: str, default: Any = _MISSING) -> Any:
    """An argument of a call, by place or by name."""
    if name in operation.kwargs:
        return operation.kwargs[name]
    if place < len(operation.args):
        return operation.args[place]
    if default is _MISSING:
        raise Unknown(name)
    return default


def one(operation: Operation) -> Tensor:
    """The result, where it is one tensor."""
    if not isinstance(operation.result, Tensor):
        raise Unknown("result")
    return operation.result


def tensor(operation: Operation, place: int, name: str) -> Tensor:
    """An argument that is a tensor."""
    value = given(operation, place, name)
    if not isinstance(value, Tensor):
        raise Unknown(name)
    return value


def dims_of(value: Any, rank: int) -> list[int]:
    """Dimensions as given, counted from the front; None: all."""
    if value is None:
        return list(range(rank))
    if isinstance(value, int):
        value = [value]
    if not all(isinstance(dim, int) for dim in value):
        raise Unknown("dimensions")
    return [dim % rank for dim in value] if rank else []


def sizes_of(values: Iterable[Any]) -> list[int]:
    """Sizes as given: one by one, or as one tuple."""
    flat: list[Any] = []
    for value in values:
        flat += value if isinstance(value, (tuple, list)) else [value]
    return [int(value) for value in flat]
