"""Checks of single values from a manifest. Each returns the value, or raises `CheckpointError`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxgraft.errors import CheckpointError


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise _unexpected(name, "text", value)
    return value


def truth(name: str, value: Any) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        raise _unexpected(name, "true or false", value)
    return value


def integer(name: str, value: Any) -> int:
    """A whole number, not negative, that fits 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise _unexpected(name, "a whole number", value)
    return value


def number(name: str, value: Any) -> float:
    """A number (a measured loss may well be inf or NaN)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _unexpected(name, "a number", value)
    return value


def share(name: str, value: Any) -> float:
    """A number in [0, 1]."""
    if not 0 <= number(name, value) <= 1:
        raise _unexpected(name, "a share between 0 and 1", value)
    return float(value)


def counts(name: str, value: Any) -> dict[str, int]:
    """Names and whole numbers."""
    if not isinstance(value, dict):
        raise _unexpected(name, "names and numbers", value)
    return {text(name, key): integer(name, number) for key, number in value.items()}


def optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """None, or what passes ``check``."""
    return lambda name, value: None if value is None else check(name, value)


def _unexpected(name: str, expected: str, value: Any) -> CheckpointError:
    return CheckpointError(f"{name}: expected {expected}; got {repr(value)[:80]}")
