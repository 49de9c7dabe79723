"""Accelerate: a manager for what an ``Accelerator`` has prepared. Needs accelerate.

host, optimizer, loader = accelerator.prepare(host, optimizer, loader)
growth = Growth(accelerator, host, optimizer)
for x, y in loader:
    with accelerator.accumulate(host):
        loss = criterion(host(x), y)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        growth.step(loss)

`GrowCallback("auto", accelerator, grow={"evaluate": ...})` in its place lets the host grow by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.checkpoint import elsewhere
from fxgraft.errors import CheckpointError
from fxgraft.explore import autogrow
from fxgraft.host.host import Host
from fxgraft.host.state_loading import ENTRY
from fxgraft.integrations._carrier import AUTO, bare
from fxgraft.manager.manager import SeedManager
from fxgraft.optimizers.wrapped import inner

FILE = "fxgraft.safetensors"
"""The name of our file in each folder that ``accelerator.save_state`` writes, for the first of its models."""

WORKS_UNDER = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

_GROWTHS = "_fxgraft_growths"
"""Where an accelerator keeps what was made for it."""


class Growth:
    """A manager that is saved and loaded with the checkpoints of an accelerator.

    ``accelerator.save_state(folder)`` writes the manager's file into the folder, and a note instead of the
    host's weights: ``load_state`` without a `Growth` raises.
    ``accelerator.load_state(folder)`` loads it before Accelerate loads the optimizers, so that these have the
    seeds' parameters by then. Seeds of the host are removed first.

    Each of several hosts has its own `Growth`, with its own optimizers. Their files are numbered, like
    Accelerate's own, in the order in which the models were prepared.

    Args:
        accelerator: the ``Accelerator`` that prepared the other arguments.
        host: what ``accelerator.prepare`` returned for the traced model: the `Host`, or DDP around it.
        optimizer: what it returned for the optimizer, or for several.
        schedulers: what it returned for the schedulers.
        **options: of `SeedManager`.

    Attributes:
        manager: the `SeedManager`. ``accelerator.load_state`` replaces it.

    Raises:
        ValueError: the accelerator shards models, or has not prepared this one; another `Growth` has this
            host, or this optimizer.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        host: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        schedulers: Sequence[Any] = (),
        **options: Any,
    ):
        if accelerator.distributed_type not in WORKS_UNDER:
            raise ValueError(
                f"accelerator: expected one of {', '.join(kind.value for kind in WORKS_UNDER)}; "
                f"got {accelerator.distributed_type.value}"
            )
        # On several processes it returns DDP, and keeps what is inside.
        self._known = (host, getattr(host, "module", host))
        if all(model is not known for model in accelerator._models for known in self._known):
            raise ValueError(
                "host: expected what accelerator.prepare(host) returned; it has not prepared this one"
            )
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        self._accelerator, self._host = accelerator, host
        self._optimizers = list(map(inner, optimizers))
        others: list[Growth] = accelerator.__dict__.setdefault(_GROWTHS, [])
        for other in others:
            if any(model is known for model in self._known for known in other._known):
                raise ValueError("host: expected one Growth for each; this host has one already")
            if any(optimizer is known for optimizer in self._optimizers for known in other._optimizers):
                raise ValueError(
                    "optimizer: expected one of this host's own; another Growth has it, and neither could "
                    "save the part of the other's seeds. Give each host an optimizer"
                )
        options["schedulers"] = list(map(inner, schedulers))
        self._options = options
        self.manager = SeedManager(host, self._optimizers, **options)
        others.append(self)
        if len(others) == 1:
            accelerator.register_save_state_pre_hook(partial(_save, others))
            accelerator.register_load_state_pre_hook(partial(_load, others))

    def step(self, loss: float | Tensor | None = None) -> None:
        """After ``optimizer.step()``; where gradients are accumulated, it counts the last batch only.

        Args:
            loss: that of the batch, for the log and for controllers. Default None.
        """
        if self._accelerator.sync_gradients:
            self.manager.step(loss)

    def _place(self, models: Sequence[nn.Module]) -> int:
        for place, model in enumerate(models):
            if any(model is known for known in self._known):
                return place
        raise CheckpointError(
            "the accelerator does not have the host of a Growth any more (free_memory?): prepare the host "
            "again, and make a Growth of it"
        )

    def _load(self, file: Path) -> None:
        with bare(self.manager.host, self._optimizers, self._options["schedulers"]):
            self.manager = SeedManager.load(file, self._host, self._optimizers, **self._options)


class GrowCallback(Growth):
    """A `Growth` with automatic growth (`SeedManager.autogrow`), like the callbacks for other trainers.

    Call ``callback.step(loss)`` like `Growth.step`. It continues after ``accelerator.load_state``.

    Args:
        host: ``"auto"``: the one host that the accelerator has prepared; or what ``accelerator.prepare`` made
            of that, where there are several.
        accelerator: the ``Accelerator`` that prepared the host, its optimizers and schedulers.
        grow: arguments of `SeedManager.autogrow`; ``evaluate`` is required.
        **options: of `SeedManager`.

    Attributes:
        growth: what `SeedManager.autogrow` returned; None before the first step.

    Raises:
        ValueError: as for `Growth`; there is no ``evaluate``; no host, or several; or no optimizer that has
            the host's parameters.
    """

    def __init__(
        self,
        host: nn.Module | str,
        accelerator: Accelerator,
        *,
        grow: Mapping[str, Any],
        **options: Any,
    ):
        if "evaluate" not in grow:
            raise ValueError(
                "GrowCallback(grow): expected {'evaluate': a function that returns a loss of the host, ...}; "
                f"got {sorted(grow)}"
            )
        found = _the_host(accelerator, host) if isinstance(host, str) else host
        own = set(found.parameters())
        optimizers = [o for o in accelerator._optimizers if own & _parameters(o)]
        if not optimizers:
            raise ValueError(
                "accelerator: expected it to have prepared an optimizer of the host's parameters; it has none"
            )
        inside = set(map(inner, optimizers))
        schedulers = [s for s in accelerator._schedulers if inner(s).optimizer in inside]
        super().__init__(accelerator, found, optimizers, schedulers, **options)
        self._grow, self.growth = dict(grow), cast("autogrow.AutoGrowth | None", None)

    def step(self, loss: float | Tensor | None = None) -> None:
        """After ``optimizer.step()``; where gradients are accumulated, it counts the last batch only.

        Args:
            loss: that of the batch, for the log. Default None.
        """
        if self.growth is None and self._accelerator.sync_gradients:
            self.growth = self.manager.autogrow(**self._grow)
        super().step(loss)

    def _load(self, file: Path) -> None:
        super()._load(file)
        self.growth = None  # that of the manager before; the next step goes on with the one that was saved


def _the_host(accelerator: Accelerator, word: str) -> nn.Module:
    if word != AUTO:
        raise ValueError(f"GrowCallback(host): the only word is {AUTO!r}; got {word!r}")
    found = [model for model in accelerator._models if isinstance(getattr(model, "module", model), Host)]
    if len(found) != 1:
        raise ValueError(
            f"GrowCallback({AUTO!r}): expected one host that accelerator.prepare(fxgraft.trace(...)) "
            f"returned; there are {len(found)}. Of several, give each a GrowCallback(host, accelerator)"
        )
    return cast(nn.Module, found[0])


def _parameters(optimizer: Any) -> set[Tensor]:
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


class _Loaded(nn.Module):
    """Stands in the list of models to load for a host that is loaded already: others keep their places."""

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        return [], []  # missing keys, unexpected keys


def _save(
    growths: list[Growth], models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str
) -> None:
    for growth in growths:
        place = growth._place(models)
        file = _file(folder, place)
        growth.manager.save(file)
        prefix = "" if models[place] is growth.manager.host else "module."
        note = (
            f"the weights and what grew on them are in {file.name}, which is loaded where the host has its "
            f"fxgraft.integrations.accelerate.Growth(accelerator, host, ...) before load_state"
        )
        weights[place] = {f"{prefix}{ENTRY}": elsewhere(note), note: torch.zeros(1)}


def _load(growths: list[Growth], models: list[nn.Module], folder: str) -> None:
    files = {growth: _file(folder, growth._place(models)) for growth in growths}
    for file in files.values():
        if not file.exists():
            raise CheckpointError(
                f"{file}: is not there; the state was not saved with a Growth of this host. Make the Growth "
                f"before accelerator.save_state, and load a state that was saved so"
            )
    for growth, file in files.items():
        growth._load(file)
        models[growth._place(models)] = _Loaded()


def _file(folder: str, place: int) -> Path:
    """As Accelerate numbers the files of models."""
    return Path(folder) / (FILE if place == 0 else FILE.replace(".", f"_{place}."))
