"""Operations whose backward pass ends the process, found before there is one.

``group_norm`` on a CPU, of a channels-last value that requires no gradient: torch (2.13) writes the gradient
of that value, which was not asked for, through a null pointer. An isolated seed reads such a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fxgraft.host.values import is_channels_last
from fxgraft_passes import devices


class FatalOperationError(Exception):
    """A module runs such an operation."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_group_norm.default and not args[0].requires_grad:
            raise FatalOperationError(
                "group_norm of a channels-last value that requires no gradient, whose backward pass torch "
                "does not survive on a CPU. Normalise x.contiguous(), or give the host contiguous inputs"
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def no_fatal_operations(sample: Tensor) -> Iterator[None]:
    """Inside, where a module runs on ``sample``, raise `FatalOperationError` for an operation like that."""
    if not devices.is_cpu(sample.device) or not is_channels_last(sample):
        with torch.no_grad():
            yield
        return
    with torch.enable_grad(), _Watch():  # type: ignore[no-untyped-call]
        yield
