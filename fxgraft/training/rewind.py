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
    """Load ``path`` into the very host, optimizers and schedulers that ``manager`` leads.

    A checkpoint is loaded into a host without seeds, so all are taken out first, fossils included.

    Args:
        manager: is void afterwards.
        path: a checkpoint of this run.
        host: what the manager was made for.
        optimizers: likewise.
        **options: as for `SeedManager.load`.

    Returns:
        The manager to go on with.

    Raises:
        CheckpointError: the file is damaged or does not fit. The host has no seeds then, and the weights
            that it had.
    """
    manager.cull_all()
    for optimizer in optimizers:
        optimizer.zero_grad()
    for fossil in manager.seeds.values():
        if fossil.module is not None:
            manager.registry.leave(fossil.module.parameters())
    manager.host.clear()
    return SeedManager.load(path, host, optimizers, schedulers=manager.schedulers, **options)
