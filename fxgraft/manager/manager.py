"""The manager: the one interface to the seeds of a host. All its calls are here; each is defined in a
file of its concept, with its arguments, and what it raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fxgraft.gates import DEFAULT_GATES, Gate
from fxgraft.lifecycle.building import BlueprintLike
from fxgraft.lifecycle.isolation_monitor import DEFAULT_INTERVAL
from fxgraft.manager import (
    _commanding,
    _germinating,
    _growing,
    _probes,
    _saving,
    _searching,
    _stepping,
    _transitions,
)
from fxgraft.manager._core import ManagerCore
from fxgraft.manager.dispatch import Dispatcher
from fxgraft.manager.settings import ManagerSettings
from fxgraft.optimizers.registry import SeedParameterRegistry
from fxgraft.seeds.seed import Seed
from fxgraft.telemetry import Sink
from fxgraft.util.interrupts import uninterruptible
from fxgraft.util.text import pluralize


class SeedManager(ManagerCore):
    """Germinates, blends, culls and fossilizes seeds in a host.

    A method that changes the host and fails leaves it unchanged.

    Args:
        host: a `Host`, or the ``DistributedDataParallel`` around one, or around a module with one in it.
        optimizer: one optimizer or several, to which the parameters of seeds are added; None: there is none.
        schedulers: learning-rate schedulers to keep consistent with the groups that seeds add.
        enabled: False: a germination does nothing, which is recorded. By default the environment
            variable ``FXGRAFT_DYNAMIC_SEEDS`` decides (``0`` disables), and otherwise True.
        strict: raise `IsolationError` out of the training step where isolation is violated.
        sinks: functions that are called with every `fxgraft.telemetry.Event`.
        check_every: training steps between two isolation checks, beside the one after each change;
            0 for none. A check costs two passes of the model.
        gates: action (``"blend"``, ``"fossilize"``) -> the `fxgraft.gates.Gate` that a seed has to pass.
        cooldown: the number of steps for which a slot refuses new seeds after a cull there.
        prefetch_timeout: a germination with ``wait=False`` fails after so many seconds of building its
            module, and after so many more of compiling its structure; None: never.
        metrics_every: training steps between two entries of the journal (the events ``steps``, ``compiled``
            and ``metrics``) to the sinks; 0 for none.
        helper: ``"auto"``: a compiler process compiles for ``wait=False``, where it can be started (Linux, a
            host on the CPU); ``"off"``: there is no such process.
        shard_from: on a host that ``fully_shard`` has sharded, the elements from which a parameter of a seed
            is sharded as well, and not replicated; None: 65,536.
        ddp: the ``DistributedDataParallel`` around a module that contains the host, where several do.

    Raises:
        DistributedError: several ranks train the host, and the manager was given it alone.
    """

    def __init__(
        self,
        host: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        schedulers: Sequence[Any] = (),
        enabled: bool | None = None,
        strict: bool = False,
        sinks: Sequence[Sink] = (),
        check_every: int = DEFAULT_INTERVAL,
        gates: Mapping[str, Gate] = DEFAULT_GATES,
        cooldown: int = 0,
        prefetch_timeout: float | None = 300.0,
        metrics_every: int = 0,
        helper: str = "auto",
        shard_from: int | None = None,
        ddp: nn.Module | None = None,
    ):
        settings = ManagerSettings(
            schedulers=schedulers,
            enabled=enabled,
            strict=strict,
            sinks=sinks,
            check_every=check_every,
            gates=gates,
            cooldown=cooldown,
            prefetch_timeout=prefetch_timeout,
            metrics_every=metrics_every,
            helper=helper,
            shard_from=shard_from,
            ddp=ddp,
        )
        super().__init__(host, optimizer, settings)
        self._dispatcher = Dispatcher(self, self._reporter)

    # What there is

    @property
    def seeds(self) -> Mapping[str, Seed]:
        """Name -> seed: the live ones and the fossils."""
        return MappingProxyType(self._seeds)

    @property
    def steps(self) -> int:
        """The number of training steps, those of the runs that were resumed included."""
        return self._reporter.step

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers of the host and its seeds."""
        return self._optimizers

    @property
    def registry(self) -> SeedParameterRegistry:
        """The registry that says which seed owns which parameter."""
        return self._lifecycle.registry

    def seed_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of live seeds."""
        for seed in self._seeds.values():
            yield from self.registry.parameters(seed.name)

    def __repr__(self) -> str:
        seeds = pluralize(len(self._seeds), "seed") if self._seeds else "no seeds"
        lines = [f"SeedManager at step {self.steps}, {seeds}"]
        return "\n".join([*lines, *(f"  {seed!r}" for seed in self._seeds.values())])

    # The life of a seed

    germinate = _germinating.germinate
    plan = _germinating.plan
    blend = _transitions.blend
    fossilize = _transitions.fossilize
    cull = _transitions.cull
    cull_all = _transitions.cull_all
    pause = _transitions.pause
    resume = _transitions.resume
    together = _transitions.together
    plan_together = _transitions.plan_together
    no_cooldown = _transitions.no_cooldown

    # Once per training step

    step = _stepping.step

    # Growth of the model's own layers

    deepen = _growing.deepen
    widen = _growing.widen
    fuse = _growing.fuse

    # Where to grow

    explore = _searching.explore
    _explore_from = _searching.explore_from
    autogrow = _searching.autogrow

    # Commands

    handle = _commanding.handle
    submit = _commanding.submit
    carry_out = _commanding.carry_out
    carry_out_together = _commanding.carry_out_together

    # What seeds do

    metrics = _probes.metrics
    measure = _probes.measure
    at_alpha = _probes.at_alpha
    shadow = _probes.shadow

    # Files, and the states of other frameworks

    save = _saving.save
    describe = _saving.describe
    lead = _saving.lead
    reschedule = _saving.reschedule

    @classmethod
    @uninterruptible
    def load(
        cls,
        path: str | os.PathLike[str],
        host: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        blueprints: Mapping[str, BlueprintLike] | None = None,
        wait: bool = True,
        **options: Any,
    ) -> SeedManager:
        """Continue a saved run, bit for bit.

        Args:
            path: the file or folder that `save` wrote.
            host: freshly traced from the same model, without seeds.
            optimizer: new optimizers of the same classes and with the same groups as those saved.
            blueprints: for seeds that were germinated from code: seed name -> module or factory.
            wait: False: a compiled host runs uncompiled until the compiler process has compiled it.
            **options: as for `SeedManager`; ``schedulers`` are new ones of the same classes.

        Raises:
            CheckpointError: the file is damaged, belongs to another host, or needs a blueprint that is not
                given. Host and optimizers are unchanged.
        """
        with torch.inference_mode(False):  # what is made inside of it could not be trained
            manager = cls(host, optimizer, **options)
            manager._saver.load(path, {**manager.host.seed_blueprints, **(blueprints or {})}, wait)
        return manager
