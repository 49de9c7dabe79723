"""The checkpoints of a run: a folder with one file for each, named by its step, and the way back to one."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxgraft.distributed.peers import Peers
from fxgraft.manager import settings
from fxgraft.manager.manager import SeedManager
from fxgraft.resizing.narrowing import averages_begin_anew, narrow
from fxgraft.telemetry.events import logger
from fxgraft.util.interrupts import delay_interrupts_to_the_end

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
                for file in _files_of(old):
                    file.unlink()
        return path

    def begin(self, peers: Peers) -> None:
        """A new run begins: what an earlier one left in the folder is moved aside. Every rank has to call it.

        It is not this run's: to go back to it, or to count it when old files are deleted, would be wrong.

        Args:
            peers: the ranks.
        """
        if peers.rank == 0 and (earlier := self.latest_first()):
            number = next(n for n in itertools.count(1) if not (self._folder / f"earlier-{n}").exists())
            aside = self._folder / f"earlier-{number}"
            aside.mkdir()
            for file in (part for checkpoint in earlier for part in _files_of(checkpoint)):
                file.rename(aside / file.name)
            logger.warning(
                "%s has checkpoints of an earlier run, up to %s: they are moved to %s, as this run begins "
                "anew. To continue one, put it back and give resume=True",
                self._folder,
                earlier[0].name,
                aside,
            )
        peers.mean(0.0)  # no rank writes before

    def latest_first(self, until: int | None = None) -> list[Path]:
        """The files, the latest first.

        Args:
            until: the last step whose file is wanted. Default None: all.
        """
        files = sorted(self._folder.glob(f"step-*{_SUFFIX}"), reverse=True)
        return [file for file in files if until is None or _step_of(file) <= until]

    def drop_after(self, file: Path, peers: Peers) -> None:
        """Delete the files later than one: their states were rolled back. Every rank has to call it.

        Args:
            file: the last one to keep.
            peers: the ranks.
        """
        peers.mean(0.0)  # all have looked for theirs
        if peers.rank == 0:
            for later in self.latest_first():
                for part in _files_of(later) if _step_of(later) > _step_of(file) else ():
                    part.unlink()
        peers.mean(0.0)


def _files_of(checkpoint: Path) -> list[Path]:
    """Its own, and those of the other ranks."""
    return [checkpoint, *checkpoint.parent.glob(f"{checkpoint.name}.rank*")]


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

    All seeds are removed first, fossils included, because a checkpoint is loaded into a host without seeds;
    layers that have grown wider since become as narrow as they were. Averages that follow the host begin anew
    there.

    Args:
        manager: the present manager; it cannot be used afterwards.
        path: a checkpoint of this run.
        host: the host of the manager.
        optimizers: the optimizers of the manager.
        **options: as for `SeedManager.load`, without ``schedulers``, which are the manager's.

    Returns:
        The manager to continue with.

    Raises:
        CheckpointError: the file is damaged or does not fit. Nothing has changed, and ``manager`` goes on.
        TypeError, ValueError: the host or the optimizers are not the manager's, or an option is invalid.
            Likewise.
    """
    manager._allow("rewind")
    manager._refuse_inference_mode("rewind")
    _check_arguments(manager, host, optimizers, options)
    blueprints = {**manager.host.seed_blueprints, **(options.get("blueprints") or {})}
    later = manager._saver.check(path, blueprints)
    with delay_interrupts_to_the_end():
        try:
            manager.cull_all()
            for optimizer in manager.optimizers:
                optimizer.zero_grad()
            for fossil in manager.seeds.values():
                if fossil.module is not None:
                    manager.registry.leave(fossil.module.parameters())
            manager.host.clear()
            shrunk = narrow(manager.host, later, manager.optimizers) if later else []
            found = SeedManager.load(path, host, optimizers, schedulers=manager.schedulers, **options)
            if shrunk:
                averages_begin_anew(found.host, shrunk)
        except BaseException as error:  # memory, the compiler, an interrupt of these: rare, and not silent
            manager.retire(
                f"rewind() failed when the seeds were gone already ({type(error).__name__}). Load the "
                f"checkpoint with SeedManager.load"
            )
            raise
        manager.retire("rewind() has returned another manager, which leads the host now: use that")
        return found


def _check_arguments(
    manager: SeedManager, host: nn.Module, optimizers: Sequence[Optimizer], options: dict[str, Any]
) -> None:
    """Raise `TypeError` or `ValueError` for what is not the manager's own, or what no manager takes."""
    if settings.host_of(host) is not manager.host:
        raise ValueError("host: expected the host of the manager; got another one")
    if list(map(id, settings.optimizers_of(optimizers, manager.host))) != list(map(id, manager.optimizers)):
        raise ValueError("optimizers: expected those of the manager; got others")
    parameters = inspect.signature(SeedManager).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    given = {name: value for name, value in options.items() if name not in ("blueprints", "wait")}
    if unknown := given.keys() - defaults.keys() | given.keys() & {"schedulers"}:
        raise TypeError(f"rewind: expected options of SeedManager.load; got {min(unknown)!r}")
    settings.ManagerSettings(**{**defaults, "schedulers": manager.schedulers, **given})
