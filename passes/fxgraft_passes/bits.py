"""Comparison of tensors to the bit. ``torch.equal`` takes -0.0 for 0.0 and NaN for different from itself."""

from __future__ import annotations

import torch
from torch import Tensor

from fxgraft_passes import devices

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in shape, dtype, device and every bit."""
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    if not devices.has_data(a) or a.numel() == 0:
        return True
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return a.layout is b.layout and same_tensor(a.to_dense(), b.to_dense())
    return torch.equal(_as_integers(a), _as_integers(b))


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, flat; of a bool as uint8."""
    flat = _as_integers(tensor.contiguous()).reshape(-1)
    return flat.to(torch.uint8) if flat.dtype is torch.bool else flat


def _as_integers(tensor: Tensor) -> Tensor:
    """What is equal where the bits are: the memory itself as integers, without a copy."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGERS[tensor.element_size()]) if tensor.is_floating_point() else tensor
