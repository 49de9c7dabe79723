"""Arguments with their dataclasses opened, so that each tensor in them is a leaf."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

MOST_DEEP = 20
"""How many dataclasses may be in one another: one that holds itself has no end."""


@dataclass
class _Opened:
    """An instance of a dataclass: what its attributes are."""

    cls: type
    attributes: dict[str, Any]


def _flatten(opened: _Opened) -> tuple[list[Any], tuple[type, tuple[str, ...]]]:
    return list(opened.attributes.values()), (opened.cls, tuple(opened.attributes))


def _unflatten(values: Any, context: tuple[type, tuple[str, ...]]) -> Any:
    """An instance, made as copies are: without its ``__init__``."""
    cls, names = context
    made: Any = object.__new__(cls)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(made, name, value)
    return made


pytree.register_pytree_node(_Opened, _flatten, _unflatten)


def opened(value: Any, deep: int = 0) -> Any:
    """``value`` (containers) with all dataclasses opened; `pytree.tree_unflatten` makes these again."""

    def open_one(leaf: Any) -> Any:
        if deep >= MOST_DEEP or not _is_record(leaf):
            return leaf
        attributes = vars(leaf) if hasattr(leaf, "__dict__") else _fields(leaf)
        return _Opened(type(leaf), {name: opened(part, deep + 1) for name, part in attributes.items()})

    return pytree.tree_map(open_one, value)


def _is_record(value: Any) -> bool:
    if not dataclasses.is_dataclass(value) or isinstance(value, type | Tensor | nn.Module):
        return False
    return type(value).__new__ is object.__new__  # a container has more in it than its attributes


def _fields(record: Any) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if hasattr(record, f.name)}
