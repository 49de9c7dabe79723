"""Tensors: the local part of one that is distributed, random ones, and what rounding takes of a change."""

from __future__ import annotations

import torch
from torch import Tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor; a plain tensor itself. Not differentiable."""
    if type(tensor) is Tensor:
        return tensor
    # By its attribute: without sharding nothing of torch.distributed.tensor is imported.
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a DTensor, for which every rank calls it; a plain tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "_local_tensor") else tensor  # type: ignore[attr-defined,no-any-return]


def random_like(tensor: Tensor, seed: int) -> Tensor:
    """Normal numbers in the shape, dtype and device of ``tensor``, the same for the same seed."""
    generator = torch.Generator(tensor.device).manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)


_MOST = 0.5
"""Which share of a change rounding may take, in the 2-norm."""


def lost_in_rounding(name: str, before: Tensor, exact: Tensor) -> str | None:
    """Why a change cannot be made, as the end of a sentence; None if most of it stays.

    Args:
        name: of the tensor, for the message.
        before: the tensor as it is.
        exact: what it is to be, in a wider dtype; as large.
    """
    if before.is_meta or exact.is_meta:
        return None  # which cannot be seen
    wide = exact.dtype
    change = torch.linalg.vector_norm(exact - before.to(wide)).item()
    lost = torch.linalg.vector_norm(exact.to(before.dtype).to(wide) - exact).item()
    if lost <= _MOST * change:
        return None
    return (
        f"changes {name} by {change:.2g}, of which rounding to {before.dtype} takes {lost:.2g}: it would be "
        f"lost. Expected a larger change, or a dtype of more digits: host.float() first, or let it stay"
    )
