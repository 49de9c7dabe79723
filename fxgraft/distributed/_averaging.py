"""The mean over ranks of what belongs to seeds: gradients, and the buffers of rank 0.

``DistributedDataParallel`` reduces the parameters that it saw when it was made, never those of later seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def average_gradients(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Replace each parameter's gradient by the mean of the ranks' gradients, in place.

    One all-reduce for each device and dtype. As in ``DistributedDataParallel`` a rank without a gradient
    counts as one with zeros; a parameter without a gradient on any rank stays without.

    Args:
        parameters: the same on each rank, in the same order.
        group: the ranks.
    """
    for members in _by_kind(parameters):
        sizes = [parameter.numel() for parameter in members]
        flat = members[0].new_zeros(len(sizes) + sum(sizes))  # in front: which have a gradient
        parts = torch.split_with_sizes(flat[len(sizes) :], sizes)
        for i, (parameter, part) in enumerate(zip(members, parts, strict=True)):
            if parameter.grad is not None:
                flat[i] = 1
                part.copy_(parameter.grad.reshape(-1))
        flat[len(sizes) :] /= group.size()  # before the sum: scaled gradients of float16 would overflow
        dist.all_reduce(flat, group=group)
        there = flat[: len(sizes)].tolist()
        for parameter, part, count in zip(members, parts, there, strict=True):
            if not count:
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(part.view(parameter.shape))


def broadcast(tensors: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Give every rank the tensors of rank 0, in place; one broadcast for each device and dtype."""
    for members in _by_kind(tensors):
        sizes = [tensor.numel() for tensor in members]
        flat = torch.cat([t.detach().reshape(-1) for t in members])
        dist.broadcast(flat, group=group, group_src=0)
        with torch.no_grad():
            for tensor, part in zip(members, torch.split_with_sizes(flat, sizes), strict=True):
                tensor.copy_(part.view(tensor.shape))


def _by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(kinds.values())
