"""Tensors with more indices: which are new, and where the old ones are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxgraft_passes.channels._grown_layout import Spread


def widened(tensor: Tensor, spreads: Sequence[tuple[int, Spread]]) -> tuple[Tensor, Tensor]:
    """The tensor with the indices of ``spreads``, new ones like those they are made like; which are new."""
    fresh = torch.zeros((1,) * tensor.dim(), dtype=torch.bool, device=tensor.device)
    for dim, found in spreads:
        tensor = tensor.index_select(dim, torch.tensor(found.origin, device=tensor.device))
        fresh = fresh | along(dim, found.fresh, tensor)
    return tensor, fresh.expand(tensor.shape)


def filled(tensor: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``fill`` makes of a tensor, laid out as that is."""
    return laid_out_as(tensor, fill(tensor))


def laid_out_as(tensor: Tensor, wide: Tensor) -> Tensor:
    """``wide`` with its channels last where those of ``tensor`` are."""
    last = torch.channels_last
    is_so = tensor.dim() == 4 and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous()
    return wide.contiguous(memory_format=last if is_so else torch.contiguous_format)


def along(dim: int, values: Sequence[Any], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The values as a tensor that broadcasts along one dimension of ``like``."""
    flat = torch.tensor(values, device=like.device, dtype=dtype)
    return flat.reshape([-1 if i == dim else 1 for i in range(like.dim())])
