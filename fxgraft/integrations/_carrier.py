"""What every callback does, by whatever names its framework calls it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fxgraft.errors import StageError
from fxgraft.explore.autogrow import AutoGrowth
from fxgraft.explore.measuring import Evaluate
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.host.state_loading import ENTRY
from fxgraft.manager.manager import SeedManager
from fxgraft.manager.terms import checked_terms
from fxgraft.optimizers.removal import take_out
from fxgraft.optimizers.wrapped import inner
from fxgraft.telemetry import logger
from fxgraft.training.loop_parts import clip_per_owner

AUTO = "auto"
LATEST = 8
"""How many of the latest batches are measured on, where no evaluation was given."""


class Carrier:
    """Connects a manager with the training loop of another framework. A base class.

    Where the trainer clips gradients by norm, a carrier does it in its place, for each owner separately: with
    one norm over all parameters the seeds would affect the host.

    Args:
        host: the traced model that is trained; ``"auto"``: the one that the trainer has, which grows by
            itself (`SeedManager.autogrow`).
        on_step: called with the manager after each optimizer step, to germinate, blend and cull; ``"auto"``
            lets ``host`` grow by itself.
        grow: arguments of `SeedManager.autogrow`. Without an ``evaluate`` there, the latest batches that were
            trained on are what is measured on; with one of your own, on held-out data, a run that is resumed
            grows to the bit as one that was not interrupted.
        **options: of `SeedManager`.

    Attributes:
        manager: leads the seeds; None before training begins.
        growth: what `SeedManager.autogrow` returned; None before the first step, or without growth.
    """

    _host: Host

    def __init__(
        self,
        host: Host | str,
        on_step: Callable[[SeedManager], None] | str = lambda manager: None,
        *,
        grow: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        for name, given in (("host", host), ("on_step", on_step)):
            if isinstance(given, str) and given != AUTO:
                raise ValueError(f"GrowCallback({name}): the only word is {AUTO!r}; got {given!r}")
        self._auto = isinstance(host, str) or isinstance(on_step, str)
        if grow is not None and not self._auto:
            raise ValueError(f"GrowCallback(grow): expected GrowCallback({AUTO!r}, grow=...) with it")
        self.manager: SeedManager | None = None
        self.growth: AutoGrowth | None = None
        self._on_step = on_step if not isinstance(on_step, str) else lambda manager: None
        self._options, self._grow = options, checked_terms("GrowCallback(grow)", grow or {})
        if not isinstance(host, str):
            self._bind(host)
        self._clip_norm: float | None = None  # what the trainer would clip to, while we do

    def _bind(self, host: Host) -> None:
        """This is the host."""
        self._host = host

    @property
    def _is_bound(self) -> bool:
        return "_host" in self.__dict__

    def _evaluation(self) -> Evaluate:
        """What growth is measured by, where nothing was given."""
        raise ValueError("GrowCallback: expected grow={'evaluate': ...}, a function that returns a loss")

    def _total_steps(self) -> int | None:
        """How many steps the trainer will make, where that is known."""
        return None

    def _begin_growth(self) -> None:
        """Start `SeedManager.autogrow`, or continue a loaded one; called before the step is counted."""
        assert self.manager is not None
        given = {"total_steps": self._total_steps(), **self._grow}
        if "evaluate" not in given:
            given["evaluate"] = self._evaluation()
        self.growth = self.manager.autogrow(**given)

    def _start(
        self,
        optimizers: Optimizer | Sequence[Optimizer],
        schedulers: Sequence[Any],
        file: str | os.PathLike[str] | None,
    ) -> None:
        """Make the manager; where there is a ``file`` of an earlier run, go on with that.

        Where there is none, and the host has grown in an earlier training or with a state that it loaded, the
        new manager leads these seeds from now on, with what the new optimizers have for them.

        Raises:
            StageError: the host has seeds of which nothing says how they are wired.
        """
        host, options = self._host, {"schedulers": schedulers, **self._options}
        self.growth = None
        if file is not None:
            with bare(host, optimizers, schedulers):
                self.manager = SeedManager.load(file, host, optimizers, **options)
        elif not host.structure.placements:
            self.manager = SeedManager(host, optimizers, **options)
        elif (said := host.structure_entry and host.structure_entry(host)) is not None:
            state = host.state_dict()
            with bare(host, optimizers, schedulers):
                self.manager = SeedManager(host, optimizers, **options)
                self.manager.lead(said[0])
            state.pop(ENTRY, None)  # and not a copy without it, which would have no versions of modules
            host.load_state_dict(state)
        else:
            raise StageError(
                "the host has seeds of another SeedManager, which this callback does not lead. Let the "
                "callback grow it; or trace it anew: fxgraft.trace(fxgraft.unwrap(host), ...)"
            )
        self._carry()
        # Before the first call: what it explores has to see all gradients. Latest batches there are none yet.
        if file is not None and self._auto and "evaluate" in self._grow:
            self._begin_growth()

    def _carry(self) -> None:
        """Describe the seeds in each ``state_dict`` of the host, and follow a loaded one with other seeds."""
        manager = self.manager
        assert manager is not None
        self._host.structure_entry = lambda host: manager.describe()
        self._host._links.on_structure = self._follow

    def _follow(self, entry: Tensor | None) -> None:
        """A state is loaded into the host: a new manager leads its seeds, with the same optimizers.

        Args:
            entry: how they are wired; None: the state has the host's weights and no seeds.
        """
        before, host = self.manager, self._host
        assert before is not None
        with bare(host, before.optimizers, before.schedulers):
            options = {"schedulers": before.schedulers, **self._options}
            manager = SeedManager(host, before.optimizers, **options)
            if entry is not None:
                manager.lead(entry)
        names = [", ".join(manager.seeds) or "none" for manager in (before, manager)]
        if names[0] != names[1]:
            logger.warning("a state with other seeds was loaded: there were %s; now there are %s", *names)
        self.manager, self.growth = manager, None
        self._carry()

    def _clip(self) -> None:
        if self._clip_norm is not None and self.manager is not None:
            clip_per_owner(self.manager, self._clip_norm)

    def _step(self, loss: float | Tensor | None = None) -> None:
        assert self.manager is not None
        if self._auto and self.growth is None:
            self._begin_growth()
        self.manager.step(loss)
        self._on_step(self.manager)


@contextmanager
def bare(
    host: Host, given: Optimizer | Sequence[Optimizer], schedulers: Sequence[Any] = ()
) -> Iterator[None]:
    """Inside, host and optimizers are without its seeds, so that others can be loaded; undone on failure."""
    optimizers = [inner(one) for one in ([given] if isinstance(given, Optimizer) else given)]
    seeds = [parameter for graft in host.grafts().values() for parameter in graft.parameters()]
    with ExitStack() as undo:
        engine.clear(undo, host)
        for scheduler in map(inner, schedulers):
            undo.callback(scheduler.load_state_dict, copy.deepcopy(scheduler.state_dict()))
        for optimizer in optimizers:
            undo.callback(
                optimizer.state.update, {p: optimizer.state[p] for p in seeds if p in optimizer.state}
            )
            undo.callback(optimizer.param_groups.__setitem__, slice(None), list(optimizer.param_groups))
            for group in optimizer.param_groups:
                for key in {"params", "param_names"} & group.keys():
                    undo.callback(group[key].__setitem__, slice(None), list(group[key]))
        take_out(optimizers, list(map(inner, schedulers)), seeds)
        yield
        undo.pop_all()
