"""The form of a value in a fingerprint: hashable, and equal where compiled code sees no difference."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PLAIN = (
    *(int, float, complex, bool, str, bytes, type(None), type(...), enum.Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
CONTAINERS = (list, tuple, dict, set, frozenset)
MOST_ITEMS = 256
"""A larger container is compared by identity, not by its items."""


class FingerprintFacts:
    """Something hashable whose hash is computed once."""

    __slots__ = ("_facts", "_hash")

    def __init__(self, facts: tuple[object, ...]):
        self._facts = facts
        self._hash = hash(facts)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, FingerprintFacts) and self._hash == other._hash and self._facts == other._facts
        )

    def __hash__(self) -> int:
        return self._hash


class Identity:
    """Which object it is: equal for the same object only. Holds it weakly where that is possible."""

    __slots__ = ("_id", "_of")

    def __init__(self, value: object):
        self._id = id(value)
        self._of: Callable[[], object]
        try:
            self._of = weakref.ref(value)
        except TypeError:
            self._of = lambda: value

    def __eq__(self, other: object) -> bool:
        mine = self._of()
        return self is other or (isinstance(other, Identity) and mine is not None and mine is other._of())

    def __hash__(self) -> int:
        return self._id


def is_plain(value: Any) -> bool:
    """Whether a container holds nothing but what compiled code checks by itself."""
    if not isinstance(value, CONTAINERS) or len(value) > MOST_ITEMS:
        return False
    items = value.values() if isinstance(value, dict) else value
    return all(isinstance(item, (*PLAIN, Tensor)) or is_plain(item) for item in items)


def plain(value: Any) -> object:
    """A plain value so that those that differ are unequal: 1 and True, 0.0 and -0.0."""
    return type(value), repr(value) if isinstance(value, (float, complex)) else value


def hashable(value: Any) -> object:
    """A plain value, or which of all objects it is."""
    return plain(value) if isinstance(value, PLAIN) else Identity(value)


def tensor_facts(tensor: Tensor) -> object:
    """What compiled code takes for granted of a tensor: not its numbers."""
    layout = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    return type(tensor), tensor.shape, layout, tensor.dtype, tensor.device, tensor.requires_grad
