"""The host's own tensors: what a seed must not have, and what stays tied where the host is converted."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft.util.tensors import local_tensor
from fxgraft_passes import devices

Known = dict[int, weakref.ref[Tensor]]


class Ownership:
    """Knows the parameters and buffers of a model and of its fossils, by where they lie in memory.

    What it has seen it remembers: to ask is not to walk through the model.

    Args:
        root: the model.
        fossils: a weak reference to what returns the modules that have become parts of it.
    """

    def __init__(self, root: nn.Module, fossils: weakref.WeakMethod[Callable[[], Iterable[nn.Module]]]):
        self._root, self._fossils = root, fossils
        self._known: Known | None = None
        self._of_fossils: Known | None = None
        self.look()

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is one of the model's, or lies in the memory of one."""
        return _has(self._known or self.look(), tensor) or _has(self._known_of_fossils(), tensor)

    def forget(self) -> None:
        """The model has, or is to have, other tensors: look again when there is a question."""
        self._known = None
        self.forget_fossils()

    def forget_fossils(self) -> None:
        """There may be other fossils."""
        self._of_fossils = None

    def look(self) -> Known:
        """See what the model has now."""
        self._known = _known([self._root])
        return self._known

    def _known_of_fossils(self) -> Known:
        if self._of_fossils is None:
            fossils = self._fossils()
            self._of_fossils = _known(fossils() if fossils is not None else ())
        return self._of_fossils


def _known(modules: Iterable[nn.Module]) -> Known:
    tensors = (t for module in modules for t in (*module.parameters(), *module.buffers()))
    return {_memory(tensor): weakref.ref(tensor) for tensor in tensors}


def _has(known: Known, tensor: Tensor) -> bool:
    found = known.get(_memory(tensor))
    mine = found() if found is not None else None
    return mine is not None and _memory(mine) == _memory(tensor)


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
