"""What a setting has to be. Each takes its name and what was given, and refuses in one form.

::

    steps: expected a positive whole number; got 0
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any


def integer(name: str, given: Any, least: int = 0) -> int:
    """A whole number, ``least`` or more (also numpy's). Raises `ValueError`."""
    if isinstance(given, bool) or not isinstance(given, Integral) or int(given) < least:
        wanted = "a positive whole number" if least == 1 else f"a whole number, {least} or more"
        raise _refusal(name, wanted, given)
    return int(given)


def number(name: str, given: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number between ``least`` and ``most`` (also numpy's). Raises `ValueError`."""
    if isinstance(given, bool) or not isinstance(given, Real) or not _is_between(float(given), least, most):
        if math.isfinite(most):
            wanted = f"a number between {least:g} and {most:g}"
        else:
            wanted = "a number" if math.isinf(least) else f"a number, {least:g} or more"
        raise _refusal(name, wanted, given)
    return float(given)


def boolean(name: str, given: Any) -> bool:
    """True or False. Raises `ValueError`."""
    if not isinstance(given, bool):
        raise _refusal(name, "True or False", given)
    return given


def one_of(name: str, given: Any, known: Collection[str]) -> None:
    """One of ``known``. Raises `ValueError`."""
    if given not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}; got {given!r}")


def _is_between(value: float, least: float, most: float) -> bool:
    return math.isfinite(value) and least <= value <= most


def _refusal(name: str, wanted: str, given: Any) -> ValueError:
    return ValueError(f"{name}: expected {wanted}; got {given!r}")
