"""Nested Python data as JSON beside named tensors, and back. Nothing is pickled.

    {"lr": 0.1, "betas": (0.9, 0.99), "state": {0: {"exp_avg": tensor}}}

becomes a JSON tree in which tensors are names, and tuples, dictionaries and the floats that JSON does
not have are tagged.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fxgraft.checkpoint.file import DAMAGED
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
        while path in tensors:  # {"a.b": x, "a": {"b": y}} has two places of one name
            path += "'"
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, (bool, int, float, str))]:
            raise CheckpointError(f"{path}: expected keys of text or numbers; got {strange[0]!r}")
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
        if tag == "$tensor" and isinstance(inner, str) and inner in tensors:
            return tensors[inner]
        if tag == "$float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if tag == "$tuple" and isinstance(inner, list):
            return tuple(unpack(item, tensors) for item in inner)
        if tag == "$dict" and isinstance(inner, list) and all(map(_is_entry, inner)):
            return {key: unpack(item, tensors) for key, item in inner}
    raise CheckpointError(f"the manifest is damaged: {str(packed)[:80]!r} is not of its format. {DAMAGED}")


def convert_like(saved: Any, like: Any, where: str) -> Any:
    """``saved`` in the types of ``like``, the value that it replaces.

    Raises:
        CheckpointError: if one cannot replace the other: text for a number, say.
    """
    if like is None or saved is None:
        return saved
    if isinstance(like, Mapping) and isinstance(saved, Mapping):
        inner = {k: convert_like(v, like.get(k), f"{where}.{k}") for k, v in saved.items()}
        return type(like)(inner) if isinstance(like, (Counter, OrderedDict)) else inner
    if isinstance(like, (list, tuple)) and isinstance(saved, (list, tuple)):
        if len(like) != len(saved):
            return saved
        items = [convert_like(s, k, f"{where}.{i}") for i, (s, k) in enumerate(zip(saved, like, strict=True))]
        return items if isinstance(saved, list) else tuple(items)
    numbers = (bool, int, float, Tensor)
    if isinstance(like, numbers) and isinstance(saved, numbers):
        return saved
    if isinstance(like, str) and isinstance(saved, str):
        return saved
    raise CheckpointError(f"{where}: expected a {type(like).__name__}; got a {type(saved).__name__}")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], (bool, int, float, str))
