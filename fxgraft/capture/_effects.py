"""What a module's code does beside computing its result, and a graph would not do.

A trace that met any of it is right in the example run only, and must be refused.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgraft import _torch
from fxgraft.capture._proxy import UntraceableError
from fxgraft.capture._recorder import ReadRecorder
from fxgraft_passes import _torch as _torch_of_passes
from fxgraft_passes import devices


class Effects:
    """Watches the code of one module, from one operation to the next.

    Args:
        recorder: sees what it writes into.
        kept: tensors that no forward may write into: the model's parameters.
    """

    def __init__(self, recorder: ReadRecorder, kept: frozenset[int]):
        self._recorder = recorder
        self._kept = kept
        self._contexts = _contexts()
        self.resume()

    def check(self, others_run: bool = True) -> None:
        """Raise `UntraceableError` if the code did anything since `resume`.

        Args:
            others_run: whether the code of others comes next; if not, only contexts are looked at.
        """
        for (what, before), (_, now) in zip(self._contexts, _contexts(), strict=True):
            if before != now:
                raise UntraceableError(f"switches {what} in its forward")
        if not others_run:
            return
        if random.getstate() != self._random:
            raise UntraceableError("draws from Python's random module in its forward")
        if not _same_numpy(self._numpy, np.random.get_state()):
            raise UntraceableError("draws from NumPy's global random stream in its forward")
        self._recorder.check()

    def follow_contexts(self) -> None:
        """The code has switched autocast, and the graph does so too."""
        self._contexts = _contexts()

    def resume(self) -> None:
        """From here on it is the module's own code that runs."""
        self._random = random.getstate()
        self._numpy = np.random.get_state()
        self._recorder.resume()

    def refuse_write(self, name: str, args: Any, kwargs: Any) -> None:
        """Raise `UntraceableError` if an operation of that name would write into a tensor that is kept."""
        if (
            not (name.endswith("_") and not name.endswith("__"))
            and name not in _WRITES
            and "out" not in kwargs
        ):
            return
        written = kwargs.get("out", args[0] if args else None)
        for tensor in pytree.tree_leaves(written):
            if isinstance(tensor, Tensor) and self._is_kept(tensor):
                raise UntraceableError(f"writes into a parameter, or a tensor that is no buffer, by {name!r}")

    def _is_kept(self, tensor: Tensor) -> bool:
        memory = memory_of(tensor)
        return memory is not None and (
            memory in self._kept or any(memory_of(plain) == memory for plain in self._recorder.tensors)
        )

    def undo(self) -> None:
        """Take back what the code did."""
        self._recorder.undo()


_WRITES = ("__setitem__", "setitem", "__set__", "copy_", "__iadd__", "__imul__", "__isub__", "__itruediv__")


def memory_of(tensor: Tensor) -> int | None:
    """What tells the memory of a tensor apart from others'; None where it has none."""
    if tensor.layout is not torch.strided or _torch.is_wrapped_by_transform(tensor):
        return None
    return _torch_of_passes.memory(tensor)


def _contexts() -> tuple[tuple[str, Any], ...]:
    kinds = devices.types()
    return (
        ("autocast", tuple(map(torch.is_autocast_enabled, kinds))),
        ("the autocast dtype", tuple(map(torch.get_autocast_dtype, kinds))),
        ("inference mode", torch.is_inference_mode_enabled()),
        ("the default dtype", torch.get_default_dtype()),
    )


def _same_numpy(a: Any, b: Any) -> bool:
    return a[2:] == b[2:] and bool((a[1] == b[1]).all())
