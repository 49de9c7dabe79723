"""The Hugging Face ``Trainer``: a callback that carries a manager. Needs transformers.

trainer = Trainer(host, arguments, train_dataset=..., callbacks=[GrowCallback(host, on_step=decide)])
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fxgraft.errors import CheckpointError
from fxgraft.host import Host
from fxgraft.manager import SeedManager
from fxgraft.training.clipping import clip_per_owner

FILE = "fxgraft.safetensors"
"""The name of our file in each checkpoint folder."""


class GrowCallback(TrainerCallback):  # type: ignore[misc]
    """Makes a manager when training begins, steps it, and saves and loads it with the trainer's checkpoints.

    The trainer's own checkpoints know no structure, so what they hold of optimizer and scheduler is left to
    the manager's file: give ``TrainingArguments(save_only_model=True)``. The host's signature takes anything:
    give ``remove_unused_columns=False``, and set ``trainer.model_accepts_loss_kwargs`` as the model's is.

    Where the trainer clips by norm (``max_grad_norm``, by default 1), the callback does it in its place, each
    owner for itself: by one norm over all the host would feel its seeds.

    Args:
        host: the traced model that the trainer trains.
        on_step: called with the manager after each optimizer step, to germinate, blend and cull.
        **options: of `SeedManager`.

    Attributes:
        manager: leads the seeds; None before training begins.
    """

    def __init__(
        self, host: Host, on_step: Callable[[SeedManager], None] = lambda manager: None, **options: Any
    ):
        self.manager: SeedManager | None = None
        self._host, self._on_step, self._options = host, on_step, options
        self._clip_norm = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Make the manager; where the trainer resumes, go on with the seeds of its checkpoint.

        Raises:
            ValueError: the trainer would save optimizers that it cannot load again.
            CheckpointError: the checkpoint that is resumed from has no file of ours.
        """
        if not args.save_only_model:
            raise ValueError("TrainingArguments: expected save_only_model=True; the manager saves optimizers")
        self._clip_norm, args.max_grad_norm = args.max_grad_norm, 0.0
        optimizer: Optimizer = getattr(given["optimizer"], "optimizer", given["optimizer"])
        scheduler = getattr(given["lr_scheduler"], "scheduler", given["lr_scheduler"])
        options = {"schedulers": [scheduler], **self._options}
        if not state.global_step:
            self.manager = SeedManager(self._host, optimizer, **options)
            return
        file = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FILE
        if not file.exists():
            raise CheckpointError(f"{file}: is not there; the run was not saved with this callback")
        self.manager = SeedManager.load(file, self._host, optimizer, **options)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Give the clipping back."""
        args.max_grad_norm = self._clip_norm

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Clip, each owner for itself."""
        if self._clip_norm and self.manager is not None:
            clip_per_owner(self.manager, self._clip_norm)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """After ``optimizer.step()``: once for each, however many batches were accumulated."""
        assert self.manager is not None
        self.manager.step()
        self._on_step(self.manager)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Beside the trainer's own files."""
        assert self.manager is not None
        self.manager.save(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FILE)
