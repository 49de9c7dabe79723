"""The example call: a copy of it, for comparison, and its form, for files.

The form is JSON: enough to trace the same model again, without data of the call.

{"$tensor": {"shape": [4, 6], "dtype": "float32"}}

Numbers, text, flags and containers are kept as they are, but for floats that JSON does not have. A tensor
made from a form has random numbers; one of whole numbers has the least that was there in all its places (so a
mask of ones is one again).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft_passes import devices

CallForm = Any
"""JSON types only."""

_TENSOR, _TUPLE, _DICT, _FLOAT = "$tensor", "$tuple", "$dict", "$float"


_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def form_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CallForm | None:
    """The form of a call; None where something in it is neither data nor a tensor."""
    try:
        return {"args": _packed(tuple(args)), "kwargs": _packed(dict(kwargs))}
    except TypeError:
        return None


def call_of(form: CallForm) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of that form, on the CPU. Draws nothing from the global random stream."""
    generator = torch.Generator().manual_seed(0)
    return _unpacked(form["args"], generator), _unpacked(form["kwargs"], generator)


def _packed(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value) is Tensor and value.layout is torch.strided:
        found: dict[str, Any] = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if not value.is_floating_point() and not value.is_complex():
            found["least"] = _least(value) if value.numel() and devices.has_data(value) else 0
        return {_TENSOR: found}
    if type(value) is list:
        return [_packed(item) for item in value]
    if type(value) is tuple:
        return {_TUPLE: [_packed(item) for item in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {_DICT: [[key, _packed(item)] for key, item in value.items()]}
    raise TypeError(type(value).__name__)


def _least(value: Tensor) -> int:
    """The least element. Large unsigned types have no kernel for it; beyond 63 bits it is 0."""
    return max(int(value.to(torch.int64).min()), 0) if value.dtype in _UNSIGNED else int(value.min())


def _unpacked(packed: Any, generator: torch.Generator) -> Any:
    if isinstance(packed, list):
        return [_unpacked(item, generator) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, inner),) = packed.items()
    if kind == _TUPLE:
        return tuple(_unpacked(item, generator) for item in inner)
    if kind == _FLOAT:
        return float(inner)
    if kind == _DICT:
        return {str(key): _unpacked(item, generator) for key, item in inner}
    dtype = getattr(torch, inner["dtype"])
    if "least" in inner:
        return torch.full(inner["shape"], inner["least"], dtype=dtype)
    return torch.randn(inner["shape"], generator=generator).to(dtype)


@dataclass(frozen=True)
class ExampleCall:
    """The arguments of the call that a host was traced with: copies, on the device where they were."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def for_(self, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fresh arguments for a call of ``module``: where its parameters are, of their dtype."""
        like = next(module.parameters(), torch.empty(0))

        def fresh(tensor: torch.Tensor) -> torch.Tensor:
            dtype = like.dtype if tensor.is_floating_point() else None
            moved = tensor.detach().clone().to(device=like.device, dtype=dtype)
            return moved.requires_grad_(tensor.requires_grad)

        found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
            torch.Tensor, fresh, (self.args, self.kwargs)
        )
        return found

    def __deepcopy__(self, memo: object) -> ExampleCall:
        return self
