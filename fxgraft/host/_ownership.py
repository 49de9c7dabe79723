"""Which tensors are the host's own: what a seed must not have."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from fxgraft.util.dtensor import local_tensor


class Ownership:
    """Knows the parameters and buffers of a model, by where they lie in memory.

    What it has seen it remembers: to ask is not to walk through the model.

    Args:
        root: the model.
    """

    def __init__(self, root: nn.Module):
        self._root = root
        self._known: dict[int, weakref.ref[Tensor]] | None = None
        self.look()

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is one of the model's, or lies in the memory of one."""
        known = self.look() if self._known is None else self._known
        found = known.get(_memory(tensor))
        mine = found() if found is not None else None
        return mine is not None and _memory(mine) == _memory(tensor)

    def forget(self) -> None:
        """The model has, or is to have, other tensors: look again when there is a question."""
        self._known = None

    def look(self) -> dict[int, weakref.ref[Tensor]]:
        """See what the model has now."""
        tensors = (*self._root.parameters(), *self._root.buffers())
        self._known = {_memory(tensor): weakref.ref(tensor) for tensor in tensors}
        return self._known


def _memory(tensor: Tensor) -> int:
    """Equal for tensors that are one, or that lie in the same memory (``nn.Parameter(other.data)``)."""
    tensor = local_tensor(tensor)
    if tensor.device.type == "meta" or tensor.layout is not torch.strided:
        return id(tensor)
    return tensor.untyped_storage().data_ptr() or id(tensor)
