"""The checkpoints of a run: a folder with one file for each, named by its step, and the way back to one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxgraft.manager.manager import SeedManager

_SUFFIX = ".fxgraft"


class Checkpoints:
    """Writes, finds and prunes checkpoints.

    Args:
        folder: where the files are; it is created if it is missing.
        keep: the number of files to keep, the latest ones.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._keep = keep

    def save(self, manager: SeedManager, step: int) -> Path:
        """Write the state after ``step``, then delete the oldest files. Every rank has to call it.

        Args:
            manager: the manager of the run.
            step: the number of the training step, for the name of the file.
        """
        path = self._folder / f"step-{step:09d}{_SUFFIX}"
        manager.save(path)
        manager.peers.mean(0.0)  # all have written
        if manager.peers.rank == 0:
            for old in self.latest_first()[self._keep :]:
                for file in (old, *old.parent.glob(f"{old.name}.rank*")):
                    file.unlink()
        return path

    def latest_first(self, until: int | None = None) -> list[Path]:
        """The files, the latest first.

        Args:
            until: the last step whose file is wanted. Default None: all.
        """
        files = sorted(self._folder.glob(f"step-*{_SUFFIX}"), reverse=True)
        return [file for file in files if until is None or _step_of(file) <= until]

    def drop_after(self, file: Path) -> None:
        """Delete the files that are later than one: their states were rolled back.

        Args:
            file: the last one to keep.
        """
        for later in self.latest_first():
            if _step_of(later) > _step_of(file):
                later.unlink()


def _step_of(file: Path) -> int:
    return int(file.name.removeprefix("step-").removesuffix(_SUFFIX))


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
