"""Random tensors that draw from no stream but their own."""

from __future__ import annotations

import torch
from torch import Tensor


def random_like(tensor: Tensor, seed: int) -> Tensor:
    """Normal numbers in the shape, dtype and device of ``tensor``, the same for the same seed."""
    generator = torch.Generator(tensor.device).manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)
