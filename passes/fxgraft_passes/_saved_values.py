"""What tensors, arrays and generators contain, as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxgraft_passes import _torch, devices
from fxgraft_passes.bits import same_tensor
from fxgraft_passes.saved_names import Saved


class SavedTensor(Saved):
    """A tensor: its memory, and what is in there. Its gradient is not looked at."""

    def __init__(self, value: Tensor):
        super().__init__(value)
        self._memory = value.data
        self._content = None if value.is_meta else value.data.clone()
        self._requires_grad = value.requires_grad

    def change(self) -> str | None:
        now = self.value.data
        if now.shape != self._memory.shape or not _is_same_memory(now, self._memory):
            return "the tensor behind it"
        if self._content is not None and not same_tensor(self._memory, self._content):
            return "its values"
        return None if self.value.requires_grad == self._requires_grad else "whether it requires grad"

    def restore(self) -> None:
        # By .data, which autograd does not count as a change: a graph that waits for backward stays right.
        devices.forget_casts()
        if self._content is not None and not same_tensor(self._memory, self._content):
            self._memory.copy_(self._content)
        now = self.value.data
        if now.shape != self._memory.shape or not _is_same_memory(now, self._memory):
            self.value.data = self._memory
        if self.value.is_leaf:
            self.value.requires_grad_(self._requires_grad)


class State(Saved):
    """What gives its state and takes it back: generators of random numbers, counters of ``itertools``."""

    def __init__(self, value: Any, read: Callable[[], Any], write: Callable[[Any], object]):
        super().__init__(value)
        self._read, self._write = read, write
        self._before = read()

    def change(self) -> str | None:
        now = self._read()
        if isinstance(now, Tensor):
            return None if torch.equal(now, self._before) else "its state"
        return None if repr(now) == repr(self._before) else "its state"

    def restore(self) -> None:
        self._write(self._before)


class Array(Saved):
    """An array of NumPy's, which is not imported for it."""

    def __init__(self, value: Any):
        super().__init__(value)
        self._before = value.copy()

    def change(self) -> str | None:
        same = self.value.shape == self._before.shape and self.value.tobytes() == self._before.tobytes()
        return None if same else "its values"

    def restore(self) -> None:
        self.value[...] = self._before


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        _torch.memory(a) == _torch.memory(b)
        and a.storage_offset() == b.storage_offset()
        and a.stride() == b.stride()
        and a.dtype == b.dtype
    )
