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
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.errors import CheckpointError
from fxgraft.manager.manager import SeedManager

FILE = "fxgraft.safetensors"
"""The name of our file in each folder that ``accelerator.save_state`` writes."""

WORKS_UNDER = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Growth:
    """A manager whose checkpoints are those of an accelerator.

    ``accelerator.save_state(folder)`` writes the manager's file into the folder in the place of the host's
    weights, and ``accelerator.load_state(folder)`` loads it before Accelerate loads the optimizers, so that
    they have the seeds' parameters by then.

    Args:
        accelerator: has prepared the others.
        host: what ``accelerator.prepare`` made of the traced model: the `Host`, or DDP around it.
        optimizer: likewise of the optimizer, or of several.
        schedulers: likewise.
        **options: of `SeedManager`.

    Attributes:
        manager: leads the seeds. Another one after ``accelerator.load_state``.

    Raises:
        ValueError: the accelerator shards models, or has not prepared this one.
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
        self._optimizers = [getattr(wrapped, "optimizer", wrapped) for wrapped in optimizers]
        options["schedulers"] = [getattr(wrapped, "scheduler", wrapped) for wrapped in schedulers]
        self._options = options
        self.manager = SeedManager(host, self._optimizers, **options)
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._load)

    def step(self, loss: float | Tensor | None = None) -> None:
        """After ``optimizer.step()``; where gradients are accumulated, it counts the last batch only."""
        if self._accelerator.sync_gradients:
            self.manager.step(loss)

    def _save(self, models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        del weights[self._index(models)]  # they are in our file, with the structure that they need
        self.manager.save(Path(folder) / FILE)

    def _load(self, models: list[nn.Module], folder: str) -> None:
        file = Path(folder) / FILE
        if not file.exists():
            raise CheckpointError(f"{file}: is not there; the state was not saved with a Growth")
        if there := ", ".join(self.manager.seeds):
            raise CheckpointError(f"{file}: expected a host without seeds to load into; there are {there}")
        del models[self._index(models)]
        self.manager = SeedManager.load(file, self._host, self._optimizers, **self._options)

    def _index(self, models: Sequence[nn.Module]) -> int:
        return next(i for i, model in enumerate(models) for known in self._known if model is known)
