"""The host's own tensors: what a seed must not have, and what stays tied where the host is converted."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft.util.tensors import local_tensor
from fxgraft_passes import devices


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
    if not devices.has_data(tensor) or tensor.layout is not torch.strided:
        return id(tensor)
    return tensor.untyped_storage().data_ptr() or id(tensor)


@contextmanager
def keep_tied_weights(*roots: nn.Module) -> Iterator[None]:
    """A context in which a conversion keeps tied parameters and buffers tied.

    ``nn.Module._apply`` makes a new tensor for each place, where it cannot fill the old one (from the
    ``meta`` device, say): tied weights would come apart.
    """
    places: dict[Tensor, list[tuple[dict[str, Any], str]]] = {}
    for module in [module for root in roots for module in root.modules()]:
        for register in (module._parameters, module._buffers):
            for name, tensor in register.items():
                if tensor is not None:
                    places.setdefault(tensor, []).append((register, name))
    tied = [found for found in places.values() if len(found) > 1]
    yield
    for (first, its_name), *others in tied:
        for register, name in others:
            register[name] = first[its_name]
