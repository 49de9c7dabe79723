"""Lightning: a callback that carries a manager. Needs lightning.

trainer = Trainer(callbacks=[GrowCallback(module.host, on_step=decide)], ...)
trainer.fit(module, loader)
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from fxgraft.errors import CheckpointError
from fxgraft.integrations.carrier import Carrier
from fxgraft_passes.graft import SEEDS

ENTRY = "fxgraft"
"""The entry of Lightning's checkpoints with the manager's file, a tensor of bytes: no seed is pickled."""


class GrowCallback(Carrier, Callback):  # type: ignore[misc]
    """Makes a manager when training begins, steps it, and saves and loads it within Lightning's checkpoints.

    A checkpoint has the weights of the host as ever, and in an entry of its own what grew on it, with the
    optimizers and schedulers, which Lightning could not load into a host without seeds.

    One process, one device. To go on bit for bit, give the ``DataLoader`` a ``generator`` of its own:
    Lightning draws from the global stream for a loader without one, at other moments than in a run that was
    not interrupted.

    Where the ``Trainer`` clips by norm, the callback does it in its place, each owner for itself: by one norm
    over all the host would feel its seeds.

    Args:
        host: the traced model, anywhere in the ``LightningModule``.
        on_step: called with the manager after each optimizer step, to germinate, blend and cull.
        **options: of `SeedManager`.

    Attributes:
        manager: leads the seeds; None before training begins.
    """

    _saved: bytes | None = None
    _steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what would not work.

        Raises:
            ValueError: the host is not in the module, or there are several processes.
        """
        if all(module is not self._host for module in pl_module.modules()):
            raise ValueError(
                f"GrowCallback(host): expected a host that {type(pl_module).__name__} holds "
                f"(self.host = fxgraft.trace(...)); got one that is not among its modules"
            )
        if trainer.world_size > 1:
            raise ValueError(
                f"Trainer: expected one device; got {trainer.world_size}. Write the loop yourself, around "
                f"SeedManager(DistributedDataParallel(host), ...)"
            )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the manager's file until there are optimizers to load it into."""
        entry = checkpoint.get(ENTRY)
        if not isinstance(entry, Tensor):
            raise CheckpointError(
                f"the checkpoint has no entry {ENTRY!r}: it was not saved with GrowCallback"
            )
        self._saved = entry.numpy().tobytes()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the manager; where the run is resumed, go on with the seeds of its checkpoint."""
        self._steps = trainer.global_step
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        with tempfile.TemporaryDirectory() as folder:
            file = None
            if self._saved is not None:
                file = Path(folder) / "run"
                file.write_bytes(self._saved)
            self._start(trainer.optimizers, schedulers, file)
        self._saved = None
        if trainer.gradient_clip_val is not None and trainer.gradient_clip_algorithm != "value":
            self._clip_norm, trainer.gradient_clip_val = trainer.gradient_clip_val, None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the clipping back."""
        if self._clip_norm is not None:
            trainer.gradient_clip_val, self._clip_norm = self._clip_norm, None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give it back as well."""
        self.on_train_end(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Clip, each owner for itself."""
        self._clip()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a batch with an optimizer step in it: once for all the batches that were accumulated."""
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        self._step(outputs.get("loss") if isinstance(outputs, dict) else None)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the manager's file in, and take out what it stands for."""
        if self.manager is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            self.manager.save(Path(folder) / "run")
            content = (Path(folder) / "run").read_bytes()
        checkpoint[ENTRY] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        checkpoint["optimizer_states"], checkpoint["lr_schedulers"] = [], []
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            name: value for name, value in weights.items() if SEEDS not in name.split(".")
        }
