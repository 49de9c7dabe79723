"""What ``==`` leaves out: ``1 == 1.0 == True`` and ``0.0 == -0.0``, alone and in containers.

equal to (2, 0.5)     type($[0]) is int, type($[1]) is float
equal to [1, 2, 3]    all(type(item) is int for item in $)
equal to 0.0          type($) is float, §0(1.0, $) == 1.0       where §0 is math.copysign
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

NUMBERS = (bool, int, float, complex)
SIGN = math.copysign
"""Bound at import: while a model is traced, torch.fx has functions of its own in ``math``."""
_SIGN_OF = "§0(1.0, "


def uses_sign(test: str) -> bool:
    """Whether a test of `number_tests` needs `SIGN` as its ``§0``."""
    return _SIGN_OF in test


def number_tests(where: str, value: Any) -> Iterator[str]:
    """Conditions under which what equals ``value`` has its types of numbers, and its signs of zeros.

    Args:
        where: Python for what is tested.
        value: a constant, or a container of constants.
    """
    if type(value) in NUMBERS:
        yield f"type({where}) is {type(value).__name__}"
        if type(value) is float and value == 0:
            yield f"{_SIGN_OF}{where}) == {SIGN(1.0, value)}"
    elif isinstance(value, dict):
        yield from _counted(where, value)
        for key, item in value.items():
            yield from number_tests(f"{where}[{key!r}]", item)
    elif isinstance(value, (set, frozenset)):
        yield from _counted(where, value)
    elif isinstance(value, (list, tuple)):
        types = {type(item) for item in value}
        if types in ({bool}, {int}, {complex}) or (types == {float} and all(value)):
            yield f"all(type(item) is {types.pop().__name__} for item in {where})"
            return
        for i, item in enumerate(value):
            yield from number_tests(f"{where}[{i}]", item)


def _counted(where: str, values: Collection[Any]) -> Iterator[str]:
    """How many numbers of each type there are, where their order says nothing."""
    for kind in NUMBERS:
        if count := sum(type(item) is kind for item in values):
            yield f"sum(type(item) is {kind.__name__} for item in {where}) == {count}"
