"""Nested Python data as JSON beside named tensors, and back. Nothing is pickled.

    {"lr": 0.1, "betas": (0.9, 0.99), "state": {0: {"exp_avg": tensor}}}

becomes a JSON tree in which tensors are names, and tuples, dictionaries and the floats that JSON does
not have are tagged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fxgraft.errors import CheckpointError


def pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON form of ``value``; its tensors are added to ``tensors`` under names below ``path``.

    Raises:
        CheckpointError: if there is something in it that is neither data nor a tensor.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        return {"$dict": [[key, pack(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    raise CheckpointError(f"{path}: expected tensors, numbers, text, containers; got {type(value).__name__}")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`. Raises `CheckpointError` for what `pack` does not make."""
    if packed is None or isinstance(packed, (bool, int, float, str)):
        return packed
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if isinstance(packed, dict) and len(packed) == 1:
        ((tag, inner),) = packed.items()
        if tag == "$tensor" and inner in tensors:
            return tensors[inner]
        if tag == "$float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if tag == "$tuple" and isinstance(inner, list):
            return tuple(unpack(item, tensors) for item in inner)
        if tag == "$dict" and isinstance(inner, list):
            return {key: unpack(item, tensors) for key, item in inner}
    raise CheckpointError(f"the manifest is damaged: {str(packed)[:80]!r} is not of its format")
