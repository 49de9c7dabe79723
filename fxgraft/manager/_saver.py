"""Saves and loads a manager's run: on one rank, on several, and on a sharded host."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fxgraft import checkpoint
from fxgraft.distributed.peers import Peers
from fxgraft.host import engine
from fxgraft.host.channels import Widened
from fxgraft.host.wrapped import is_wrapped
from fxgraft.lifecycle.building import BlueprintLike
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager.reporter import Reporter
from fxgraft.optimizers.groups import unknown_schedules
from fxgraft.seeds.names import SeedNames
from fxgraft.slots.structure import Structure
from fxgraft.telemetry import logger


@dataclass
class ManagerState:
    """What a manager remembers beside its seeds.

    Attributes:
        run_seed: what the seeds' random streams are keyed by.
        names: generates names.
        refuses_until: slot -> the step until which it refuses seeds.
        growth: gives the state of what grows by itself, or that state as it was loaded; None: nothing does.
        over: why the manager leads the host no more; empty while it does.
    """

    run_seed: int
    names: SeedNames = field(default_factory=SeedNames)
    refuses_until: dict[str, int] = field(default_factory=dict)
    growth: Callable[[], dict[str, Any]] | dict[str, Any] | None = None
    over: str = ""


class Saver:
    """Saves and loads the state of these objects together.

    Args:
        lifecycle: has the host and the seeds.
        optimizers, schedulers: of the run.
        reporter: counts the steps.
        peers: the other ranks.
        memory: what else there is.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[Any],
        reporter: Reporter,
        peers: Peers,
        memory: ManagerState,
    ):
        self._lifecycle, self._optimizers, self.schedulers = lifecycle, optimizers, schedulers
        self._reporter, self._peers, self._memory = reporter, peers, memory
        self._warned = False

    def save(self, path: str | os.PathLike[str]) -> None:
        """As `SeedManager.save`."""
        if not self._warned and (unknown := unknown_schedules(self._optimizers, self.schedulers)):
            self._warned = True
            logger.warning(
                "%s: the learning-rate scheduler of %s is not saved: expected it in "
                "SeedManager(..., schedulers=[...])",
                path,
                ", ".join(unknown),
            )
        if self._peers.folder is not None:
            self._peers.folder.save(path, self._save_shards)
        elif self._peers.rank:
            checkpoint.save_streams(path, self._peers.rank, self._reporter.step)
        else:
            self._write(path)

    def check(
        self, path: str | os.PathLike[str], blueprints: Mapping[str, BlueprintLike]
    ) -> tuple[Widened, ...]:
        """What `load` would need to go back to an earlier state of this run; see `checkpoint.check`."""
        folder, host = self._peers.folder, self._lifecycle.host
        alone = self._peers.size == 1 and not is_wrapped(host)
        given = self._lifecycle, self._optimizers, self.schedulers, blueprints, alone
        if folder is None:
            return checkpoint.check(path, *given)
        return checkpoint.check(folder.find(path), *given, folder.read)

    def load(self, path: str | os.PathLike[str], blueprints: Mapping[str, BlueprintLike], wait: bool) -> None:
        """As `SeedManager.load`, into a host without seeds."""
        lifecycle, folder = self._lifecycle, self._peers.folder
        host = lifecycle.host
        lifecycle.cold = True  # the structures on the way are not worth compiling
        self._reporter.silent = True
        rank, alone = self._peers.rank, self._peers.size == 1 and not is_wrapped(host)
        given = lifecycle, self._optimizers, self.schedulers, blueprints, rank, alone

        def compile_it() -> None:
            lifecycle.cold = False
            if not wait and host.compiled is not None:
                host.compiled.expect_help(host.structure)
            else:
                engine.warm_up(host, Structure())

        if folder is None:
            state = checkpoint.restore(path, *given, compile_it=compile_it)
        else:
            state = checkpoint.restore(folder.find(path), *given, read=folder.read, compile_it=compile_it)
        self._reporter.silent = False
        self._reporter.continue_at(state.step)
        memory = self._memory
        memory.run_seed, memory.names = state.run_seed, SeedNames(state.names)
        memory.refuses_until = dict(state.refuses_until)
        memory.growth = state.growth

    def describe(self) -> tuple[Tensor, list[str]]:
        """As `SeedManager.describe`."""
        lifecycle = self._lifecycle
        return checkpoint.describe(lifecycle.host, lifecycle.seeds.values(), self._memory.run_seed)

    def lead(self, entry: Tensor) -> None:
        """As `SeedManager.lead`."""
        self._reporter.silent = True
        try:
            self._memory.run_seed = checkpoint.restore_seeds(entry, self._lifecycle)
        finally:
            self._reporter.silent = False

    def _save_shards(self, run: os.PathLike[str]) -> None:
        folder = self._peers.folder
        assert folder is not None
        if self._peers.rank:
            checkpoint.save_streams(run, self._peers.rank, self._reporter.step)
        self._write(run, folder.write)

    def _write(self, path: str | os.PathLike[str], *write: Any) -> None:
        memory = self._memory
        state = checkpoint.RunState(
            memory.run_seed,
            self._reporter.step,
            dict(memory.names.next_numbers),
            dict(memory.refuses_until),
            memory.growth() if callable(memory.growth) else memory.growth,
        )
        checkpoint.save(path, self._lifecycle, self._optimizers, self.schedulers, state, *write)
