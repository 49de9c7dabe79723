"""Bring a live host and its optimizers back to a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxgraft.manager.manager import SeedManager


def rewind(
    manager: SeedManager,
    path: str | os.PathLike[str],
    host: nn.Module,
    optimizers: Sequence[Optimizer],
    **options: Any,
) -> SeedManager:
    """Load a checkpoint into the host, optimizers and schedulers that ``manager`` has already.

    All seeds are removed first, fossils included, because a checkpoint is loaded into a host without seeds.

    Args:
        manager: the present manager; it cannot be used afterwards.
        path: a checkpoint of this run.
        host: the host of the manager.
        optimizers: the optimizers of the manager.
        **options: as for `SeedManager.load`.

    Returns:
        The manager to continue with.

    Raises:
        CheckpointError: the file is damaged or does not fit. The host then has no seeds; its weights are
            unchanged.
    """
    manager.cull_all()
    for optimizer in optimizers:
        optimizer.zero_grad()
    for fossil in manager.seeds.values():
        if fossil.module is not None:
            manager.registry.leave(fossil.module.parameters())
    manager.host.clear()
    return SeedManager.load(path, host, optimizers, schedulers=manager.schedulers, **options)
