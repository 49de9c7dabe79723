"""How the elements of a tensor lie in memory.

Kernels are chosen by that, and their results differ in the last bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxgraft_passes import _torch


def alias(h: Tensor) -> Tensor:
    """A view of all of ``h``, with its very strides.

    ``view_as`` gives axes of size 1 other ones.
    """
    return h[...]


def is_dense(value: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each its own place, in some order of axes."""
    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def in_strides_of(h: Tensor, value: Tensor, is_same: bool) -> Tensor:
    """``value``, with the strides of ``h``.

    What operations return has no gaps; parts of ``split`` have. Where ``h`` has one element in several places
    (``expand``), other values cannot be laid out so: it is then ``value`` as it is.

    Args:
        h: the value of the host.
        value: of the same shape.
        is_same: whether the bits are known to be those of ``h``. Nothing writes into a value with gaps, or
            with an element in several places, where a seed can be: that is no slot.
    """
    if value.stride() == h.stride() or _is_transformed(h):
        return value
    if not _overlaps(h):
        return torch.empty_strided(h.size(), h.stride(), dtype=value.dtype, device=value.device).copy_(value)
    return alias(h) if is_same else value


def _is_transformed(h: Tensor) -> bool:
    """Whether ``vmap`` and the like have it, under which memory is not to be had."""
    return not torch.compiler.is_compiling() and _torch.is_wrapped_by_transform(h)


def _overlaps(value: Tensor) -> bool:
    """Whether an element may be in several places."""
    span = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1:
            if stride < span:
                return True
            span = stride * size
    return False
