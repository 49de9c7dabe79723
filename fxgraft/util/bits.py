"""Tensors as memory: comparison of structures to the bit (that of tensors is the passes'), and overlaps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgraft_passes.bits import bits, same_tensor

__all__ = ["bits", "overlaps", "same_bits", "same_tensor"]


def overlaps(tensor: Tensor) -> bool:
    """Whether elements share memory, as those of an expanded tensor do: nothing can be written into it."""
    if tensor.layout is not torch.strided:
        return False
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def same_bits(a: Any, b: Any) -> bool:
    """Whether two structures of tensors are equal in form, dtype and every bit.

    Leaves other than tensors are compared by ``==`` where they are constants, and taken to be
    equal where they are objects. Tensors without data (``meta``) are compared by shape and dtype.

    Args:
        a: a tensor, or any structure of tensors.
        b: the same.
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
