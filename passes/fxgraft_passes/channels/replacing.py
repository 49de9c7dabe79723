"""Wider tensors in the place of those that there are.

A parameter stays the same object: optimizers, averages, hooks and all other holders have the wider one.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from fxgraft_passes import devices
from fxgraft_passes.channels.growth import GroupGrowth
from fxgraft_passes.channels.subject import Subject


def replace_tensors(undo: ExitStack, growth: GroupGrowth, subject: Subject) -> None:
    """Replace the subject's tensors by the wider ones.

    Args:
        undo: gets the callbacks that restore the old ones.
        growth: what grows.
        subject: whose tensors; gradients grow along, with zeros.
    """
    for path, wide in growth.tensors.items():
        tensor = subject.now(path)
        grad = tensor.grad
        undo.callback(set_tensor, tensor, tensor.data, grad)
        set_tensor(tensor, wide, None if grad is None else _spread(growth, path, grad))


def _spread(growth: GroupGrowth, path: str, grad: Tensor) -> Tensor:
    """The gradient of the wider tensor, in the layout that it has: that of an embedding may be sparse."""
    if not grad.is_sparse:
        return growth.spread(path, grad, copies=False)
    wide = growth.spread(path, grad.to_dense(), copies=False)
    return wide.to_sparse(grad.sparse_dim()).coalesce()


def set_tensor(tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
    """Another tensor for the same object; through another dtype, with which autograd forgets its shape."""
    devices.forget_casts()
    with torch.no_grad():
        tensor.grad = None
        other = torch.float32 if tensor.dtype is torch.float64 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
        tensor.data = data
        tensor.grad = grad
