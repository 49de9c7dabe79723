"""Which values a blueprint takes, and the errors for those that it does not."""

from __future__ import annotations

from fxgraft.errors import BlueprintError
from fxgraft_passes import Slot

LAYOUTS = {
    "NC": "(N, C)",
    "NLC": "(N, L, C)",
    "NCHW": "(N, C, H, W)",
    "...C": "(..., C), of two dimensions or more, features last",
    "any": "of any shape",
}
"""The names of layouts, and what they mean. ``N``: batch, ``C``: channels or features, ``L``: tokens."""


def is_image(slot: Slot) -> bool:
    """Whether the value is taken for ``(N, C, H, W)``: it has four dimensions."""
    return len(slot.shape) == 4


def channels(slot: Slot, blueprint: str) -> int:
    """``C`` of a value ``(N, C, H, W)``; raises `BlueprintError` for another."""
    if not is_image(slot):
        raise shape_error(slot, blueprint, "(N, C, H, W)")
    return slot.shape[1]


def features(slot: Slot, blueprint: str) -> int:
    """``D`` of a value ``(..., D)``; raises `BlueprintError` for one of fewer than two dimensions."""
    if len(slot.shape) < 2:
        raise shape_error(slot, blueprint, "(..., D)")
    return slot.shape[-1]


def width(slot: Slot, blueprint: str) -> int:
    """The channels of a value ``(N, C, H, W)``, the last dimension of another one."""
    return channels(slot, blueprint) if is_image(slot) else features(slot, blueprint)


def shape_error(slot: Slot, blueprint: str, expected: str) -> BlueprintError:
    """The error for a value that ``blueprint`` does not take."""
    return BlueprintError(
        f"{blueprint} at slot {slot.name!r}: expected a value {expected}; got {tuple(slot.shape)}"
    )


def positive(name: str, value: int) -> int:
    """``value`` if it is a positive whole number; raises `BlueprintError` naming the option."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BlueprintError(f"{name}: expected a positive whole number; got {value!r}")
    return value


def odd(name: str, value: int) -> int:
    """``value`` if it is a positive odd number, as a kernel has to be to keep the size of an image."""
    if positive(name, value) % 2 == 0:
        raise BlueprintError(f"{name}: expected an odd number, which keeps the size; got {value}")
    return value
