"""What a manager is made of, and what its calls share.

The calls themselves are functions of a manager, a file for each concept; `manager` lists them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.commands.inbox import Inbox
from fxgraft.distributed import peers_of
from fxgraft.errors import StageError
from fxgraft.host.host import Host
from fxgraft.host.same_code import SameCode
from fxgraft.host.summary import summarize_run
from fxgraft.lifecycle import building
from fxgraft.lifecycle.act import Act
from fxgraft.lifecycle.building import BlueprintLike
from fxgraft.lifecycle.isolation_check import Violation
from fxgraft.lifecycle.isolation_monitor import LATER, IsolationMonitor
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager import settings
from fxgraft.manager._background import Background
from fxgraft.manager._deepening import Deepening
from fxgraft.manager._journal import Journal
from fxgraft.manager._saver import ManagerState, Saver
from fxgraft.manager._together import Acts
from fxgraft.manager._widenings import Widenings
from fxgraft.manager.dispatch import Dispatcher
from fxgraft.manager.reporter import Reporter
from fxgraft.manager.settings import ManagerSettings
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.telemetry import logger
from fxgraft.telemetry.metrics import collect
from fxgraft_passes.graft import check_name

_GIVEN_ONCE = {"host", "optimizer", *(field.name for field in fields(ManagerSettings))} - {"enabled"}


class Routine(Protocol):
    """Something that runs beside the training: an exploration, say."""

    @property
    def done(self) -> bool:
        """Whether it is over."""

    def step(self, loss: float | Tensor | None) -> None:
        """One training step is over."""


class ManagerCore:
    """The parts of a manager, wired.

    Args:
        given: the host, or what is around it.
        optimizer: what trains the seeds.
        options: checked.

    Attributes:
        host: the host itself.
        schedulers: of the optimizers.
        enabled: whether germinations do anything.
        peers: the ranks that train the host.
        monitor: checks isolation.
    """

    _dispatcher: Dispatcher  # calls what is public: set by the manager itself

    def __init__(
        self, given: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None, options: ManagerSettings
    ):
        self.host = host = settings.host_of(given)
        wrapper = settings.wrapper_of(given, host, options.ddp)
        _warn_of_foreign_seeds(host)
        self.schedulers, self.enabled = tuple(options.schedulers), bool(options.enabled)
        self._gates, self._cooldown = options.gates, options.cooldown
        self._optimizers = settings.optimizers_of(optimizer, host)
        self._reporter = Reporter(options.sinks, lambda: summarize_run(host, self._seeds.values()))
        self._lifecycle = Lifecycle(
            host,
            self._optimizers,
            self._on_stage,
            self._reporter.gradients_dropped,
            self._reporter.inactive_seeds,
            self.schedulers,
        )
        self._seeds = self._lifecycle.seeds
        self._inbox = Inbox()
        self._join(wrapper, options)
        self._background = Background(
            self._lifecycle, self._reporter, self.peers, options.prefetch_timeout, options.helper
        )
        self._journal = Journal(host, self._reporter, self._metrics, options.metrics_every)
        self._memory = ManagerState(self.peers.share(torch.initial_seed()))
        self._acts = Acts(self._lifecycle, self._background, self._memory)
        self._routines: list[Routine] = []
        # What the host ran when a step found that there is nothing to do until something is asked for.
        self._rest = SameCode(host)
        self._deepening = Deepening(
            host,
            self._lifecycle,
            self._acts,
            self._reporter,
            self._memory,
            self._name,
            self._report_germination,
        )
        self._widenings = Widenings(host, self._acts, self._reporter, self._memory, self._optimizers)
        self._saver = Saver(
            self._lifecycle, self._optimizers, self.schedulers, self._reporter, self.peers, self._memory
        )

    def _join(self, wrapper: nn.Module, options: ManagerSettings) -> None:
        """Find the ranks that train the host, and let what has to agree among them do so."""
        gradients = self._lifecycle.gradients
        self.peers = peers_of(
            wrapper,
            self.host,
            self._inbox,
            self._state,
            gradients.arrived,
            self._optimizers,
            options.strict,
            options.shard_from,
        )
        # A sharded host is not checked: that calls the model part by part.
        checks = options.check_every if self.peers.folder is None else 0
        self.monitor = IsolationMonitor(self.host, checks, options.strict, self._on_violations)
        self._lifecycle.distribute = self.peers.distribute
        gradients.average, gradients.is_shared = self.peers.average, self.peers.size > 1

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _GIVEN_ONCE and "_saver" in self.__dict__:  # the last thing that is made
            raise AttributeError(
                f"{name} of a manager is given when it is made, and only read then: "
                f"SeedManager(..., {name}=...), and load() to go on with a saved run"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a SeedManager leads one run, and is neither copied nor pickled: save() and load() take the run "
            "elsewhere; copy.deepcopy(manager.host) copies the host with its seeds"
        )

    # What calls are refused for

    def _allow(self, action: str) -> None:
        """Raise `StageError` where seeds cannot change: in another thread, or while the host is borrowed.

        Whatever gives the next steps something to do begins with this, or is sent to the inbox.
        """
        self._inbox.require_here(action)
        self._acts.refuse_threads()
        self._refuse_while_borrowed(action)
        self._refuse_retired(action)
        self._rest.forget()

    def _refuse_while_borrowed(self, action: str) -> None:
        if self.host._links.borrowed:
            raise StageError(f"cannot {action} inside {self.host._links.borrowed}: do it afterwards")

    def _refuse_cleared(self, action: str) -> None:
        """Raise `StageError` where the host has seeds of this manager no more, though none was culled."""
        self._refuse_retired(action)
        if not self._seeds:
            return
        placed = {placement.seed for placement in self.host.structure.placements}
        lost = [name for name, seed in self._seeds.items() if seed.module is not None and name not in placed]
        if lost:
            raise StageError(
                f"cannot {action}: the host was cleared (host.clear()): it has no seed {lost[0]!r} any more, "
                f"which this manager leads. Make optimizer and manager anew; without fossils "
                f"manager.cull_all() is enough"
            )

    def retire(self, why: str) -> None:
        """This manager leads the host no more: what is asked of it is refused.

        Args:
            why: the reason, with what to do.
        """
        self._memory.over = why
        self._rest.forget()

    def _refuse_retired(self, action: str) -> None:
        if self._memory.over:
            raise StageError(f"cannot {action}: {self._memory.over}")

    def _refuse_inference_mode(self, action: str) -> None:
        if torch.is_inference_mode_enabled():
            raise StageError(
                f"cannot {action} in torch.inference_mode(): what is made there cannot be trained. "
                f"Do it outside, or use torch.no_grad()"
            )

    # Seeds, and their names

    def _find(self, seed: Seed | str, action: str, *, if_cleared: bool = False) -> Seed:
        """The seed that a call is for. Raises where there is none, and after ``host.clear()``."""
        if not if_cleared:
            self._refuse_cleared(action)
        if not isinstance(seed, (Seed, str)):
            raise TypeError(
                f"seed: expected a Seed or the name of one, and one for each argument; "
                f"got {type(seed).__name__}"
            )
        known = self._seeds.get(seed.name if isinstance(seed, Seed) else seed)
        if isinstance(seed, Seed) and known is not seed:
            known = seed if seed.stage is Stage.CULLED else None  # whose stage refuses everything
        if known is None:
            whose = ", which this manager did not germinate" if isinstance(seed, Seed) else ""
            raise StageError(f"no seed {seed!r} here{whose}; there are: {', '.join(self._seeds) or 'none'}")
        return known

    def _name(self, name: str | None, blueprint: BlueprintLike, slot: str) -> str:
        if name is None:
            return self._memory.names.make(building.label(blueprint), slot, self._taken())
        check_name(name)
        if name in self._seeds:
            raise StageError(f"there is a seed {name!r} already: {self._seeds[name]!r}")
        if name in self._lifecycle.departing:
            raise StageError(
                f"the graft of culled seed {name!r} is still in the graph; it leaves at a later step(). "
                f"Choose another name, or germinate after that"
            )
        self._memory.names.note(name)
        return name

    def _taken(self) -> set[str]:
        """The names that no new seed can have; those of another manager's seeds in the host among them."""
        return {*self._seeds, *(placement.seed for placement in self.host.structure.placements)}

    # Reports

    def _state(self) -> str:
        """What has to be the same on all ranks, as text."""
        lines = [f"  step {self._reporter.step}"]
        for seed in self._seeds.values():
            paused = ", paused" if seed.paused else ""
            source = f" from {seed.source}" if seed.source else ""
            lines.append(
                f"  {seed.name}: {seed.blueprint} at {seed.slot}{source}, {seed.spec.mode}, "
                f"{seed.stage.name} at alpha {seed.alpha!r}{paused}"
            )
        return "\n".join(lines if self._seeds else [*lines, "  no seeds"])

    def _metrics(self) -> dict[str, dict[str, float]]:
        pending, registry = len(self._background.waiting), self._lifecycle.registry
        return collect(self.host, self._seeds.values(), registry, self._reporter.counters, pending)

    def _report_germination(self, seed: Seed, began: float, act: Act) -> None:
        self._reporter.live_after((time.monotonic() - began) * 1e3, seed, prefetched=not act.waits)

    def _on_violations(self, found: list[Violation]) -> None:
        self._reporter.violations(found, [seed for seed in self._seeds.values() if seed.is_live])

    def _on_stage(self, seed: Seed) -> None:
        self._rest.forget()
        self.monitor.follow(self._seeds.values())
        if seed.stage is not Stage.GERMINATED:  # which changes nothing that runs
            # What is applied in the background comes at a step of its own choice: that one stays ordinary.
            self.monitor.look_soon(LATER if self._background.is_applying else 0)
        self._reporter.stage(seed)


def _warn_of_foreign_seeds(host: Host) -> None:
    if host.structure.placements:
        logger.warning(
            "the host has seeds of another manager (%s): this one does not lead, save or cull them",
            ", ".join(placement.seed for placement in host.structure.placements),
        )
