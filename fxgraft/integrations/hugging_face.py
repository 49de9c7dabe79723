"""The Hugging Face ``Trainer``: a callback that carries a manager. Needs transformers.

trainer = Trainer(host, arguments, train_dataset=..., callbacks=[GrowCallback(host, on_step=decide)])
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fxgraft.errors import CheckpointError
from fxgraft.integrations.carrier import Carrier

FILE = "fxgraft.safetensors"
"""The name of our file in each checkpoint folder."""


class GrowCallback(Carrier, TrainerCallback):  # type: ignore[misc]
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
        file = self._file(args, state) if state.global_step else None
        if file is not None and not file.exists():
            raise CheckpointError(f"{file}: is not there; the run was not saved with this callback")
        optimizer: Optimizer = getattr(given["optimizer"], "optimizer", given["optimizer"])
        scheduler = getattr(given["lr_scheduler"], "scheduler", given["lr_scheduler"])
        self._start(optimizer, [scheduler], file)
        if args.max_grad_norm:  # it is 0 after a run that ended in an error: what it was is known then
            self._clip_norm, args.max_grad_norm = args.max_grad_norm, 0.0

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Give the clipping back."""
        if self._clip_norm is not None:
            args.max_grad_norm, self._clip_norm = self._clip_norm, None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Clip, each owner for itself."""
        self._clip()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """After ``optimizer.step()``: once for each, however many batches were accumulated."""
        self._step()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Beside the trainer's own files."""
        assert self.manager is not None
        self.manager.save(self._file(args, state))

    @staticmethod
    def _file(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FILE
