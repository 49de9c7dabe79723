"""The Hugging Face ``Trainer``: a callback that carries a manager. Needs transformers.

trainer = Trainer(host, arguments, train_dataset=..., callbacks=[GrowCallback(host, on_step=decide)])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fxgraft.checkpoint import randomness
from fxgraft.errors import CheckpointError
from fxgraft.explore.measuring import Evaluate
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.integrations._carrier import AUTO, LATEST, Carrier, bare
from fxgraft.integrations._hugging_face_calls import (
    Call,
    FirstCall,
    LatestCalls,
    keep_from_blocks,
    trace_for,
)
from fxgraft.integrations._hugging_face_files import (
    FILE,
    STATES,
    file_to_resume,
    refuse_from_pretrained,
    sums_of_bits,
)
from fxgraft.integrations._withheld_norm import WithheldNorm
from fxgraft.manager.manager import SeedManager
from fxgraft.optimizers.wrapped import inner


class GrowCallback(Carrier, TrainerCallback):  # type: ignore[misc]
    """Makes a manager when training begins, steps it, and saves and loads it with the trainer's checkpoints.

    ``resume_from_checkpoint`` and ``load_best_model_at_end`` restore exactly what had grown by then. Each
    folder that the trainer writes (checkpoints, ``trainer.save_model``) has the weights of the seeds and how
    they are wired: a host that loads ``model.safetensors`` inserts them; ``from_pretrained`` refuses the file
    and says so. Optimizers are in a separate file in each checkpoint.

    The first call that the trainer makes of the host may be of another form than the example call of
    ``fxgraft.trace`` (without a cache, with ``num_items_in_batch``): the host is then traced again as it is
    called.

    If the trainer clips by norm (``max_grad_norm``, by default 1), the callback clips instead, the host and
    each seed separately: with one norm over all parameters the seeds would affect the host.

    Args:
        host: the traced model that the trainer trains. One process, one device. For seeds that are
            germinated from code, ``host.seed_blueprints`` has the module or factory for loading a checkpoint.
            ``"auto"``: the host that the trainer trains, with automatic growth.
        on_step: called with the manager after each optimizer step, to germinate, blend and cull; ``"auto"``
            is automatic growth.
        grow: arguments of `SeedManager.autogrow`, as for a `Carrier`.
        **options: of `SeedManager`.

    Attributes:
        manager: the `SeedManager`; None before training begins, and in a resumed run before its first call of
            the host. Loading a checkpoint replaces it.
    """

    def __init__(
        self,
        host: Host | str,
        on_step: Callable[[SeedManager], None] | str = lambda manager: None,
        *,
        grow: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__(host, on_step, grow=grow, **options)
        self._optimizer: Optimizer | None = None
        self._schedulers: list[Any] = []
        self._first: FirstCall | None = None
        self._latest: LatestCalls | None = None
        self._steps: int | None = None

    def _bind(self, host: Host) -> None:
        super()._bind(host)
        host._links.on_write = self._write
        engine.watch_writing(host)
        keep_from_blocks(host)

    def _evaluation(self) -> Evaluate:
        assert self._latest is not None
        return self._latest.losses

    def _total_steps(self) -> int | None:
        return self._steps

    # Training

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Find the host, where it was not given.

        Args:
            args: the arguments of the trainer.
            state: its state.
            control: its control flow, which stays as it is.
            **given: ``model``, what the trainer trains; the rest is not used.

        Raises:
            ValueError: the trainer trains no host.
        """
        self._find(given.get("model"))

    def _find(self, model: object) -> None:
        if self._is_bound:
            return
        if not isinstance(model, Host):
            raise ValueError(
                f"GrowCallback({AUTO!r}): expected a Trainer of a host, Trainer(fxgraft.trace(...), ...); "
                f"got one of a {type(model).__name__}"
            )
        self._bind(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Make the manager; if the trainer resumes, continue with the seeds of its checkpoint.

        Args:
            args: the arguments of the trainer; ``max_grad_norm`` is not above 0 until the end.
            state: its state; a ``global_step`` above 0 resumes.
            control: its control flow, which stays as it is.
            **given: ``model``, ``optimizer`` and ``lr_scheduler``; the rest is not used.

        Raises:
            ValueError: the trainer trains another model, or on several devices.
            StageError: the host has seeds of which nothing says how they are wired.
            CheckpointError: the checkpoint that is resumed from has no file of ours.
        """
        self._find(given["model"])
        _check(args, given["model"], self._host)
        self._steps = state.max_steps if state.max_steps > 0 else None
        if self._auto and "evaluate" not in self._grow:
            self._latest = LatestCalls(self._host, LATEST)
        file = file_to_resume(args, state) if state.global_step else None
        if file is not None and not file.exists():
            raise CheckpointError(
                f"{file}: is not there; the run was not saved with this callback. Where the trainer resumes "
                f"from another folder than its output_dir, give TrainingArguments(resume_from_checkpoint=...)"
            )
        optimizer = inner(given["optimizer"])
        self._schedulers = [inner(given["lr_scheduler"])]
        again = self.manager is not None and optimizer is self._optimizer
        self._optimizer = optimizer
        if file is None and again:
            assert self.manager is not None
            self.manager.reschedule(self._schedulers)
        elif file is None:
            self._start(optimizer, self._schedulers, None)
        if self._first is not None:  # of a run that failed before it
            self._first.cancel()
        if args.torch_compile:  # whose calls have no place for anything but the model
            self._begin(args, file, None)
        else:
            self._first = FirstCall(self._host, partial(self._begin, args, file))
        if args.max_grad_norm:
            self._clip_norm = float(args.max_grad_norm)
            args.max_grad_norm = WithheldNorm.of(self, self._clip_norm)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Return clipping to the trainer; if it has loaded its best weights, restore what had grown then.

        Args:
            args: the arguments of the trainer; ``max_grad_norm`` is as before again.
            state: its state, with the best checkpoint.
            control: its control flow, which stays as it is.
            **given: is not used.

        Raises:
            CheckpointError: the best checkpoint was not saved with this callback, or cannot be loaded.
        """
        if self._clip_norm is not None:
            args.max_grad_norm, self._clip_norm = self._clip_norm, None
        if self._latest is not None:
            self._latest.stop()
        if self._first is not None:
            self._first.deliver(None)  # it may not have come by itself: in a run that was complete
            self._first = None
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            auto, self._auto = self._auto, False  # the training is over
            try:
                self._bring(Path(state.best_model_checkpoint) / FILE, keep_streams=True)
            finally:
                self._auto = auto

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Clip the host and each seed separately.

        Args:
            args: the arguments of the trainer.
            state: its state.
            control: its control flow, which stays as it is.
            **given: is not used.
        """
        self._clip()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Called after each ``optimizer.step()``, however many batches were accumulated.

        Args:
            args: the arguments of the trainer.
            state: its state.
            control: its control flow, which stays as it is.
            **given: is not used.
        """
        self._step()

    # Files

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Write the manager's file beside the trainer's, instead of those that it could not load again.

        Args:
            args: the arguments of the trainer.
            state: its state; its ``global_step`` names the folder.
            control: its control flow, which stays as it is.
            **given: is not used.

        Raises:
            CheckpointError: a seed is of code that ``load_best_model_at_end`` will need, and does not have.
        """
        assert self.manager is not None
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if args.load_best_model_at_end:
            self._require_blueprints()
        self.manager.save(folder / FILE)
        if self._host.structure.placements:
            for name in STATES:
                (folder / name).unlink(missing_ok=True)

    def _write(self, own: Callable[..., Any], folder: Any, *args: Any, **kwargs: Any) -> None:
        """In the place of the model's ``save_pretrained`` while something has grown."""
        if self._host.structure_entry is None or kwargs.get("push_to_hub"):
            why = "uploads before all is written" if self._host.structure_entry else "has no manager for it"
            raise CheckpointError(
                f"{folder}: save_pretrained of a grown model {why}: expected trainer.save_model(folder), or "
                f"manager.save(path)"
            )
        if kwargs.get("state_dict") is None:
            kwargs["state_dict"] = self._host.state_dict()
        own(folder, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            refuse_from_pretrained(Path(folder))

    def _begin(self, args: TrainingArguments, file: Path | None, call: Call | None) -> None:
        """Before anything grows: trace the host anew if it is called so; go on with a file if there is one.

        Args:
            args: of the trainer.
            file: of the checkpoint from which the trainer has loaded the weights.
            call: the first one that it makes of the host, where that is known.
        """
        if file is None:
            if call is not None and not self._host.structure.placements:
                trace_for(self._host, call)
            return
        loaded = sums_of_bits(self._host)
        assert self._optimizer is not None
        # What came with the weights comes again, with all else.
        with bare(self._host, self._optimizer, self._schedulers):
            if call is not None:
                trace_for(self._host, call)
            self._bring(file, keep_streams=not args.save_only_model)
        if loaded != sums_of_bits(self._host):
            raise CheckpointError(
                f"{file}: is of another run than the checkpoint that the trainer resumes from: their weights "
                f"differ. Say in TrainingArguments(resume_from_checkpoint=...) where that is"
            )

    def _bring(self, file: Path, keep_streams: bool) -> None:
        """Bring host, seeds and optimizer to a checkpoint, whatever has grown meanwhile."""
        if not file.exists():
            raise CheckpointError(
                f"{file}: is not there; the checkpoint was not saved with this callback. Use a checkpoint of "
                f"a run that had it, or set load_best_model_at_end=False"
            )
        assert self._optimizer is not None
        streams = randomness.state()
        self._start(self._optimizer, self._schedulers, file)
        if keep_streams:
            randomness.setter(streams)()

    def _require_blueprints(self) -> None:
        assert self.manager is not None
        for seed in self.manager.seeds.values():
            if not (seed.registered or {seed.name, seed.blueprint} & self._host.seed_blueprints.keys()):
                raise CheckpointError(
                    f"seed {seed.name!r} was germinated from code ({seed.blueprint}), which a checkpoint "
                    f"does not hold: load_best_model_at_end needs host.seed_blueprints[{seed.name!r}] = "
                    f"<module or factory>"
                )


def _check(args: TrainingArguments, model: nn.Module, host: Host) -> None:
    if model is not host:
        raise ValueError(
            f"GrowCallback(host): expected the host that the Trainer trains; that is another "
            f"{type(model).__name__} (model_init is not supported)"
        )
    if any(kind.__name__ == "PeftModel" for kind in type(engine.trees(host)[0]).__mro__):
        raise ValueError(
            "GrowCallback(host): expected a host of a model of transformers; got one of a PeftModel, whose "
            "checkpoints the Trainer would not write as such. Trace the model itself, and add adapters as "
            "seeds: fxgraft.integrations.peft"
        )
    if args.world_size > 1 or args.n_gpu > 1:
        raise ValueError(
            f"TrainingArguments: expected one process and one device; got {args.world_size} and "
            f"{args.n_gpu}. Write the loop yourself, around SeedManager(DistributedDataParallel(host), ...)"
        )
