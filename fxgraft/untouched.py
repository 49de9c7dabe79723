"""Run modules without leaving a trace in them, or in the random streams."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(*roots: nn.Module) -> Iterator[None]:
    """Run modules inside; attributes, buffers and random streams come back as they were."""
    with state_untouched(*roots), streams_untouched():
        yield


@contextmanager
def state_untouched(*roots: nn.Module) -> Iterator[None]:
    """Run modules inside on copies of their buffers; attributes and buffers come back as they were."""
    modules = [module for root in roots for module in root.modules()]
    before = [dict(module.__dict__) for module in modules]
    copies: dict[torch.Tensor, torch.Tensor] = {}
    for module in modules:
        module.__dict__["_buffers"] = {
            name: buffer if buffer is None else copies.setdefault(buffer, buffer.detach().clone())
            for name, buffer in module._buffers.items()
        }
    try:
        yield
    finally:
        for module, state in zip(modules, before, strict=True):
            module.__dict__.clear()
            module.__dict__.update(state)


@contextmanager
def streams_untouched() -> Iterator[None]:
    """Put the global random streams back afterwards. On the main thread only: they are the process's."""
    python_state = random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
