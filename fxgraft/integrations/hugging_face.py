"""The Hugging Face ``Trainer``: a callback that carries a manager. Needs transformers.

trainer = Trainer(host, arguments, train_dataset=..., callbacks=[GrowCallback(host, on_step=decide)])
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fxgraft.bits import bits
from fxgraft.checkpoint import randomness
from fxgraft.errors import CheckpointError, StageError
from fxgraft.host.host import Host
from fxgraft.integrations.carrier import Carrier
from fxgraft.lifecycle.nursery import BlueprintLike
from fxgraft.manager.manager import SeedManager
from fxgraft.optimizers.registry import SeedParameterRegistry
from fxgraft.optimizers.wrapped import inner
from fxgraft.telemetry import logger

FILE = "fxgraft.safetensors"
"""The name of our file in each folder that the trainer writes."""

_STATES = ("optimizer.pt", "scheduler.pt")
"""What the trainer would load into an optimizer without seeds; our file has it."""

_REFUSED = (
    f"none, because this model has grown: {FILE} in this folder has all of it, for "
    f"fxgraft.SeedManager.load(path, fxgraft.trace(model, ...))"
)
"""In the place of an implementation of attention: ``from_pretrained`` reads it, and refuses with these words."""


class GrowCallback(Carrier, TrainerCallback):  # type: ignore[misc]
    """Makes a manager when training begins, steps it, and saves and loads it with the trainer's checkpoints.

    Each folder that the trainer writes of a grown host (checkpoints, ``trainer.save_model``) has a file of the
    manager's beside the weights. ``resume_from_checkpoint`` and ``load_best_model_at_end`` bring back what had
    grown by then, no more and no less. ``from_pretrained`` refuses such a folder, and says what to call.

    The first call that the trainer makes of the host may be of another form than the example call of
    ``fxgraft.trace`` (without a cache, with ``num_items_in_batch``). The host is then traced anew as it is called.

    Where the trainer clips by norm (``max_grad_norm``, by default 1), the callback does it in its place, each
    owner for itself: by one norm over all the host would feel its seeds.

    Args:
        host: the traced model that the trainer trains. One process, one device.
        on_step: called with the manager after each optimizer step, to germinate, blend and cull.
        blueprints: for seeds that are germinated from code: seed name -> module or factory, with which a
            checkpoint is loaded.
        **options: of `SeedManager`.

    Attributes:
        manager: leads the seeds; None before training begins, and in a run that is resumed before its first
            call of the host. Another one after a checkpoint was loaded.
    """

    def __init__(
        self,
        host: Host,
        on_step: Callable[[SeedManager], None] = lambda manager: None,
        *,
        blueprints: Mapping[str, BlueprintLike] | None = None,
        **options: Any,
    ):
        super().__init__(host, on_step, **options)
        self._blueprints = dict(blueprints or {})
        self._optimizer: Optimizer | None = None
        self._schedulers: list[Any] = []
        self._first: _FirstCall | None = None
        self._written: Path | None = None
        host.on_write, host.brought = self._write, True
        host.watch_writing()

    # Training

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Make the manager; where the trainer resumes, go on with the seeds of its checkpoint.

        Raises:
            ValueError: the trainer trains another model, or on several devices.
            StageError: the host has seeds that this training does not know.
            CheckpointError: the checkpoint that is resumed from has no file of ours.
        """
        _check(args, given["model"], self._host)
        file = _resumed(args, state) if state.global_step else None
        if file is not None and not file.exists():
            raise CheckpointError(
                f"{file}: is not there; the run was not saved with this callback. Where the trainer resumes from "
                f"another folder than its output_dir, say so in TrainingArguments(resume_from_checkpoint=...)"
            )
        optimizer = inner(given["optimizer"])
        self._schedulers = [inner(given["lr_scheduler"])]
        again = self.manager is not None and optimizer is self._optimizer
        self._optimizer = optimizer
        if file is None and again:
            assert self.manager is not None
            self.manager.reschedule(self._schedulers)
        elif file is None:
            self._refuse_grown()
            self._start(optimizer, self._schedulers, None)
        pending = None if file is None else (lambda: self._go_on(args, file))
        if self._first is not None:  # of a run that failed before it
            self._first.cancel()
            self._first = None
        if args.torch_compile:  # no place for anything but the model
            if pending is not None:
                pending()
        else:
            self._first = _FirstCall(self._host, pending)
        if args.max_grad_norm:  # it is 0 after a run that ended in an error: what it was is known then
            self._clip_norm, args.max_grad_norm = args.max_grad_norm, 0.0

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Give the clipping back; where the trainer has loaded its best weights, bring what had grown by then.

        Raises:
            CheckpointError: the best checkpoint was not saved with this callback, or cannot be loaded.
        """
        if self._clip_norm is not None:
            args.max_grad_norm, self._clip_norm = self._clip_norm, None
        if self._first is not None:
            self._first.be_done()  # it may not have come: of a run that was complete
            self._first = None
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(Path(state.best_model_checkpoint) / FILE, keep_streams=True)

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

    # Files

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Beside the trainer's own files, and in the place of those that it could not load again.

        Raises:
            CheckpointError: a seed is of code that ``load_best_model_at_end`` will need, and does not have.
        """
        assert self.manager is not None
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if args.load_best_model_at_end:
            self._require_blueprints()
        if self._written != folder / FILE:
            self.manager.save(folder / FILE)
        self._written = None
        if self._host.structure.placements:
            for name in _STATES:
                (folder / name).unlink(missing_ok=True)

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Beside the files that the trainer copies into the folder that it uploads."""
        if self.manager is not None and self._host.structure.placements:
            self.manager.save(Path(str(args.output_dir)) / FILE)

    def _write(self, own: Callable[..., Any], folder: Any, *args: Any, **kwargs: Any) -> None:
        """In the place of the model's ``save_pretrained`` while something has grown."""
        if self.manager is None or kwargs.get("push_to_hub"):
            does = "uploads before all is written" if self.manager else "has no manager yet"
            raise CheckpointError(
                f"{folder}: save_pretrained of a grown model {does}: expected trainer.save_model(folder) or "
                f"manager.save(path)"
            )
        if kwargs.get("state_dict") is None:
            kwargs["state_dict"] = self._host.state_dict()
        own(folder, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            _refuse_from_pretrained(Path(folder))
            self._written = Path(folder) / FILE
            self.manager.save(self._written)

    def _go_on(self, args: TrainingArguments, file: Path) -> None:
        """Load the file of the checkpoint from which the trainer has loaded the weights."""
        loaded = _sums(self._host)
        self._load(file, keep_streams=not args.save_only_model)
        if loaded != _sums(self._host):
            raise CheckpointError(
                f"{file}: is of another run than the checkpoint that the trainer resumes from: their weights "
                f"differ. Say in TrainingArguments(resume_from_checkpoint=...) where that is"
            )

    def _load(self, file: Path, keep_streams: bool) -> None:
        """Bring host, seeds and optimizer to a checkpoint, whatever has grown meanwhile."""
        if not file.exists():
            raise CheckpointError(f"{file}: is not there; the checkpoint was not saved with this callback")
        streams = randomness.state()
        self._take_out()
        options = {**self._options, "blueprints": self._blueprints}
        assert self._optimizer is not None
        self.manager = SeedManager.load(
            file, self._host, self._optimizer, schedulers=self._schedulers, **options
        )
        if keep_streams:
            randomness.setter(streams)()

    def _take_out(self) -> None:
        """Everything that has grown, fossils included."""
        grafts = self._host.grafts().values()
        if self.manager is not None:
            self.manager.cull_all()
        if self._optimizer is not None:
            registry = SeedParameterRegistry([self._optimizer], self._schedulers)
            registry.leave(p for graft in grafts for p in graft.parameters())
        self._host.clear()

    def _require_blueprints(self) -> None:
        assert self.manager is not None
        for seed in self.manager.seeds.values():
            if not (seed.registered or {seed.name, seed.blueprint} & self._blueprints.keys()):
                raise CheckpointError(
                    f"seed {seed.name!r} was germinated from code ({seed.blueprint}), which a checkpoint does not "
                    f"hold: load_best_model_at_end needs GrowCallback(..., blueprints={{{seed.name!r}: "
                    f"<module or factory>}})"
                )

    def _refuse_grown(self) -> None:
        if grown := ", ".join(self._host.grafts()):
            raise StageError(
                f"the host has seeds of another training ({grown}): expected to go on with the trainer and callback "
                f"of that, to resume from a checkpoint of it, or a host in which they are a part of the model "
                f"(fxgraft.trace(fxgraft.unwrap(host), ...))"
            )


class _FirstCall:
    """Waits for the first call that a training makes of the host.

    Where that is of another form than the traced one the host is traced anew, before anything grows: seeds
    would not run in such calls. What a run is resumed with is loaded then, into the slots that there are.

    Args:
        host: the host.
        then: what is to be done after that.
    """

    def __init__(self, host: Host, then: Callable[[], None] | None):
        self._host, self._then = host, then
        self._handle = host.register_forward_pre_hook(self._on_call, with_kwargs=True)

    def cancel(self) -> None:
        """Wait no more, and do nothing."""
        self._handle.remove()

    def be_done(self) -> None:
        """Do now what is still to be done."""
        self._handle.remove()
        then, self._then = self._then, None
        if then is not None:
            then()

    def _on_call(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._handle.remove()
        if not self._host.structure.placements and (unmet := self._host.unmet(args, kwargs)) is not None:
            logger.info("the trainer calls the host in another form than it was traced in (%s): traced anew", unmet)
            self._host.retrace(args, kwargs)
        self.be_done()


def _check(args: TrainingArguments, model: nn.Module, host: Host) -> None:
    if model is not host:
        raise ValueError(
            f"GrowCallback(host): expected the host that the Trainer trains; that is another "
            f"{type(model).__name__} (model_init is not supported)"
        )
    if args.world_size > 1 or args.n_gpu > 1:
        raise ValueError(
            f"TrainingArguments: expected one process and one device; got {args.world_size} and {args.n_gpu}. Write "
            f"the loop yourself, around SeedManager(DistributedDataParallel(host), ...)"
        )


def _resumed(args: TrainingArguments, state: TrainerState) -> Path:
    """Our file in the folder that the trainer resumes from, which it does not tell."""
    given = args.resume_from_checkpoint
    name = f"checkpoint-{state.global_step}"
    if isinstance(given, str) and given not in ("True", "true") and (Path(given) / FILE).exists():
        return Path(given) / FILE
    return Path(str(args.output_dir)) / name / FILE


def _refuse_from_pretrained(folder: Path) -> None:
    """Let ``from_pretrained`` of this folder say that it cannot bring what grew."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["attn_implementation"] = _REFUSED
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sums(host: Host) -> list[int]:
    """A sum of the bits of each tensor of the model."""
    found = []
    for tensor in host.model_state().values():
        if isinstance(tensor, torch.Tensor):
            found.append(int(bits(tensor.detach()).to(torch.int64).sum()))
    return found
