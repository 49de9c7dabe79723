"""What this process has of a tensor that lies on several (a DTensor)."""

from __future__ import annotations

from torch import Tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor; a plain tensor itself. Not differentiable."""
    if type(tensor) is Tensor:
        return tensor
    # By its attribute: who does not shard imports nothing of torch.distributed.tensor.
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a DTensor, for which every rank calls it; a plain tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "_local_tensor") else tensor  # type: ignore[attr-defined,no-any-return]
