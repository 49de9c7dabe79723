"""Comparison to the bit. ``torch.equal`` takes -0.0 for 0.0 and NaN for different from itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Any, b: Any) -> bool:
    """Whether two structures of tensors are equal in form, dtype and every bit.

    Leaves other than tensors are compared by ``==`` where they are constants, and taken to be
    equal where they are objects. Tensors without data (``meta``) are compared by shape and dtype.
    """
    ours, form = pytree.tree_flatten(a)
    theirs, other = pytree.tree_flatten(b)
    return form == other and all(map(_same_leaf, ours, theirs))


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return same_tensor(a, b)
    if isinstance(a, (bool, int, float, str, type(None))):
        return type(a) is type(b) and bool(a == b)
    return type(a) is type(b)


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in shape, dtype, device and every bit."""
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    if a.device.type == "meta" or a.numel() == 0:
        return True
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return a.layout is b.layout and same_tensor(a.to_dense(), b.to_dense())
    return torch.equal(bits(a), bits(b))


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, flat."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if flat.dtype is torch.bool:
        return flat.to(torch.uint8)
    return flat.view(_INTEGERS[flat.element_size()])
