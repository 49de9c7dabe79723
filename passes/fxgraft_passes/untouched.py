"""Run modules without leaving a trace: in them, in what they reach, or in the random streams."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fxgraft_passes import devices
from fxgraft_passes.snapshot import Snapshot


@contextmanager
def untouched(
    *roots: nn.Module, also: Iterable[object] = (), before: Snapshot | None = None
) -> Iterator[Snapshot]:
    """Run modules inside; what they hold and the global random streams come back as they were.

    Args:
        *roots: the modules.
        also: other objects that their code writes into (see `Snapshot`).
        before: what an earlier call yielded for the same objects, if they are as they were then.

    Yields:
        What they hold, as it was.
    """
    with state_untouched(*roots, also=also, before=before) as known, streams_untouched():
        yield known


@contextmanager
def state_untouched(
    *roots: nn.Module, also: Iterable[object] = (), before: Snapshot | None = None
) -> Iterator[Snapshot]:
    """Run modules inside on copies of their buffers; what they hold comes back as it was.

    That is all that a `Snapshot` finds: attributes, parameters, containers, objects and generators, to any
    depth. The arguments are those of `untouched`.
    """
    before = Snapshot([*roots, *also]) if before is None else before
    copies: dict[torch.Tensor, torch.Tensor] = {}
    for module in (module for root in roots for module in root.modules()):
        module.__dict__["_buffers"] = {
            name: buffer if buffer is None else copies.setdefault(buffer, buffer.detach().clone())
            for name, buffer in module._buffers.items()
        }
    try:
        yield before
    finally:
        before.restore()


@contextmanager
def restored_on_failure(module: nn.Module) -> Iterator[None]:
    """Change a module inside; if that fails it comes back as it was, weights included."""
    before = Snapshot([module])
    try:
        yield
    except BaseException:
        before.restore()
        raise


@contextmanager
def streams_untouched() -> Iterator[None]:
    """Put the global random streams back afterwards. On the main thread only: they are the process's.

    Those of torch on each device, of Python, and of NumPy where it is imported.
    """
    numpy: Any = sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy is not None else None
    of_python = random.getstate()
    with devices.streams_kept():
        try:
            yield
        finally:
            random.setstate(of_python)
            if numpy is not None:
                numpy.random.set_state(of_numpy)


@contextmanager
def streams_fixed() -> Iterator[None]:
    """Set the global random streams to the same state each time inside; restore them afterwards."""
    with streams_untouched():
        torch.manual_seed(0)
        random.seed(0)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed(0)
        yield
