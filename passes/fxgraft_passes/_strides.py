"""How the elements of a tensor lie in memory.

Kernels are chosen by that, and their results differ in the last bits.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def in_strides_of(h: Tensor, value: Tensor) -> Tensor:
    """``value``, whose bits are those of ``h``, with the strides of ``h``.

    What operations return has no gaps (parts of ``split`` have), and no element in two places (``expand``).
    Nothing writes into a value with gaps or such elements where a seed can be: that is no slot.
    """
    if value.stride() == h.stride():
        return value
    if not is_dense(h):
        return alias(h)
    return torch.empty_strided(h.size(), h.stride(), dtype=value.dtype, device=value.device).copy_(value)
