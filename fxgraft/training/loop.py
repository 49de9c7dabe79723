"""The loop."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fxgraft.errors import CheckpointError
from fxgraft.explore.autogrow import AutoGrowth
from fxgraft.lifecycle.building import BlueprintLike
from fxgraft.manager.manager import SeedManager
from fxgraft.manager.terms import checked_terms
from fxgraft.telemetry import logger
from fxgraft.training.checkpoints import Checkpoints, rewind
from fxgraft.training.controller import Controller
from fxgraft.training.controller_link import Link
from fxgraft.training.controller_log import Recorder
from fxgraft.training.loop_parts import clip_per_owner, evaluate
from fxgraft.training.progress import EpochReport, Progress
from fxgraft.training.watchdog import DivergedError, Watchdog, WatchdogConfig
from fxgraft.util import validate
from fxgraft_passes import devices

Batch = tuple[Any, Any]
"""(inputs, target)."""


@dataclass(frozen=True)
class TrainingConfig:
    """Options of a `Trainer`.

    Attributes:
        epochs: the number of epochs; a resumed run makes the remaining ones.
        clip_norm: the largest gradient norm of each owner, or None.
        autocast: ``torch.bfloat16`` or ``torch.float16`` for mixed precision, or None. The loss is
            scaled for float16 only, whose gradients would underflow.
        folder: the folder for checkpoints; None: there are none.
        checkpoint_every: training steps between two checkpoints.
        keep: the number of checkpoints to keep.
        watchdog: when to roll back; None: never.

    Raises:
        ValueError: a value is invalid.
    """

    epochs: int = 1
    clip_norm: float | None = None
    autocast: torch.dtype | None = None
    folder: str | os.PathLike[str] | None = None
    checkpoint_every: int = 100
    keep: int = 3
    watchdog: WatchdogConfig | None = None

    def __post_init__(self) -> None:
        validate.integer("epochs", self.epochs)
        validate.integer("checkpoint_every", self.checkpoint_every, 1)
        validate.integer("keep", self.keep, 1)
        if self.clip_norm is not None:
            validate.number("clip_norm", self.clip_norm, least=0)
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"autocast: expected torch.bfloat16, torch.float16 or None; got {self.autocast!r}"
            )


class Trainer:
    """A training loop for a host, with a manager, checkpoints, a controller and rollbacks.

    Args:
        host: a `Host`, or the ``DistributedDataParallel`` around one.
        optimizer: one optimizer or several.
        criterion: (output, target) -> loss.
        config: options; None: the defaults.
        schedulers: stepped after every training step; a ``ReduceLROnPlateau`` after every epoch of `fit`,
            with the held-out loss (the training loss where there is no ``validation``).
        validation: a function that returns the held-out batches, the same at each call; seeds are measured on
            them too.
        controller: decides what to grow, or None. It needs ``validation``.
        grow: arguments of `SeedManager.autogrow`: the host grows automatically; after a rollback, and in a
            resumed run, from where it was. ``evaluate`` is the loss of each held-out batch, where none is
            given. None: it does not grow automatically. It needs ``validation`` or an ``evaluate``.
        recorder: records the commands of the controller in a file.
        resume: whether to continue from the newest checkpoint in ``config.folder``, if there is one. Default
            False: what an earlier run left there is moved into a folder ``earlier-1`` in it, with a warning.
        blueprints: as for `SeedManager.load`.
        **options: as for `SeedManager`.

    Attributes:
        manager: the `SeedManager`. It is replaced by a rollback.
        growth: what `SeedManager.autogrow` returned, or None. It is replaced by a rollback, too.
        progress: how far the run is.
        losses: of every step made by this object.
        rollbacks: (step, reason) of each.

    Raises:
        ValueError: a controller or ``grow`` needs ``validation``, and it is None.
    """

    def __init__(
        self,
        host: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        criterion: Callable[[Any, Any], Tensor],
        config: TrainingConfig | None = None,
        *,
        schedulers: Sequence[Any] = (),
        validation: Callable[[], Iterable[Batch]] | None = None,
        controller: Controller | None = None,
        grow: Mapping[str, Any] | None = None,
        recorder: Recorder | None = None,
        resume: bool = False,
        blueprints: Mapping[str, BlueprintLike] | None = None,
        **options: Any,
    ):
        if grow is not None:
            grow = checked_terms("Trainer(grow)", grow)
        if validation is None and (controller is not None or "evaluate" not in (grow or {"evaluate": None})):
            raise ValueError("validation: expected held-out batches, on which growth is measured; got None")
        self.model = host
        self.config = config or TrainingConfig()
        self.optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
        self.schedulers = tuple(schedulers)
        self._criterion, self._validation = criterion, validation
        tensors = itertools.chain(host.parameters(), host.buffers())
        self._device = devices.type_of(list(itertools.islice(tensors, 1)))
        self._scaler = torch.amp.GradScaler(self._device, enabled=self.config.autocast is torch.float16)
        self._watchdog = Watchdog(self.config.watchdog) if self.config.watchdog else None
        self.progress = Progress(self._scaler, controller, self._watchdog)
        self._options, self._load_options = options, {"blueprints": blueprints, **options}
        self._checkpoints = Checkpoints(self.config.folder, self.config.keep) if self.config.folder else None
        self.losses: list[float] = []
        self.rollbacks: list[tuple[int, str]] = []
        self.manager = self._start(resume)
        self._link = Link(self.manager, controller, self.validate, recorder) if controller else None
        self._grow, self.growth = grow, self._begin_growth(grow)

    def fit(self, batches: Callable[[int], Iterable[Batch]]) -> list[EpochReport]:
        """Train to the end. ``batches(epoch)`` returns the batches of an epoch, a function of its number.

        Args:
            batches: the number of an epoch -> its batches, pairs of inputs and targets. Equal numbers must
                give equal batches, so that a resumed run can continue in the middle of an epoch.
        """
        reports = []
        while self.progress.epoch < self.config.epochs:
            if not self.model.training:  # else what is in eval mode is meant to be
                self.model.train()
            before = len(self.losses)
            for inputs, target in islice(batches(self.progress.epoch), self.progress.batch, None):
                self.step(inputs, target)
            made = self.losses[before:]
            mean = sum(made) / len(made) if made else float("nan")
            held_out = self.validate() if self._validation else None
            for scheduler in filter(_is_by_metric, self.schedulers):
                scheduler.step(mean if held_out is None else held_out)
            reports.append(EpochReport(self.progress.epoch, len(made), mean, held_out))
            self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0
        return reports

    def step(self, inputs: Any, target: Any) -> float:
        """One training step and everything after it: `update`, then `follow`. Returns the loss.

        Args:
            inputs: the argument of the host.
            target: for the criterion.
        """
        return self.follow(self.update(inputs, target))

    def update(self, inputs: Any, target: Any) -> Tensor:
        """The training step: forward, backward, optimizers, schedulers. Returns the loss.

        Args:
            inputs: the argument of the host.
            target: for the criterion.
        """
        with self._autocast():
            loss: Tensor = self._criterion(self.model(inputs), target)
        self._optimize(loss)
        return loss.detach()

    def follow(self, loss: Tensor) -> float:
        """What is done after a training step: manager, watchdog, controller, checkpoint. Returns the loss.

        Args:
            loss: that of the training step, 0-d.
        """
        self.manager.step(loss)
        self.progress.step, self.progress.batch = self.progress.step + 1, self.progress.batch + 1
        self.losses.append(
            self.manager.peers.mean(loss.item())
        )  # the same on all ranks, for all that follows
        reason = self._watchdog.judge(self.losses[-1]) if self._watchdog else None
        if reason is not None:
            self._roll_back(reason)
            return self.losses[-1]
        if self._link is not None:
            self._link.step(self.progress.step, self.losses[-1])
        if self._checkpoints and self.progress.step % self.config.checkpoint_every == 0:
            self._checkpoints.save(self.manager, self.progress.step)
        return self.losses[-1]

    def validate(self) -> float:
        """The loss on the held-out batches."""
        assert self._validation is not None
        with self._autocast():
            return evaluate(self.model, self._validation(), self._criterion)

    def _held_out_losses(self) -> list[float]:
        """The loss of each held-out batch."""
        assert self._validation is not None
        with self._autocast():
            return [evaluate(self.model, [batch], self._criterion) for batch in self._validation()]

    def _begin_growth(self, grow: Mapping[str, Any] | None) -> AutoGrowth | None:
        """Begin to grow automatically, or continue a growth that was loaded with the manager."""
        return None if grow is None else self.manager.autogrow(**{"evaluate": self._held_out_losses, **grow})

    def _optimize(self, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm is not None:
            for optimizer in self.optimizers:
                self._scaler.unscale_(optimizer)
            clip_per_owner(self.manager, self.config.clip_norm)
        scale = self._scaler.get_scale()
        # The scaler refuses an optimizer without gradients, as one for seeds is before there are any.
        trained = [o for o in self.optimizers if not self._scaler.is_enabled() or _has_gradients(o)]
        for optimizer in trained:
            self._scaler.step(optimizer)
        if trained:
            self._scaler.update()
        if self._scaler.get_scale() >= scale:  # a smaller one says that the step was skipped
            for scheduler in itertools.filterfalse(_is_by_metric, self.schedulers):
                scheduler.step()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.autocast is None:
            return nullcontext()
        return torch.autocast(self._device, self.config.autocast)

    def _start(self, resume: bool) -> SeedManager:
        schedulers = (*self.schedulers, self.progress)
        for file in self._checkpoints.latest_first() if resume and self._checkpoints else ():
            return SeedManager.load(
                file, self.model, self.optimizers, schedulers=schedulers, **self._load_options
            )
        manager = SeedManager(self.model, self.optimizers, schedulers=schedulers, **self._options)
        if self._checkpoints is not None:
            self._checkpoints.begin(manager.peers)
        return manager

    def _roll_back(self, reason: str) -> None:
        """To the last good state. If that was not enough the last time, without the seeds it had."""
        assert self._watchdog is not None
        config, step = self._watchdog.config, self.progress.step
        attempts = self._watchdog.rolls_back(step)
        self.rollbacks.append((step, reason))
        if attempts > config.attempts:
            raise DivergedError(
                f"step {step}: {reason}; {config.attempts} rollbacks in a row did not help. Use a smaller "
                f"learning rate, or fewer seeds at a time"
            )
        logger.warning("step %d: %s; rolling back", step, reason)
        loaded = self._load_good(step - config.confirm)
        if attempts > 1 or not loaded:
            self.manager.cull_all()

    def _load_good(self, until: int) -> bool:
        """Load the newest whole checkpoint of a step up to ``until``; return whether there was one."""
        progress = self.progress
        position = progress.step, progress.epoch, progress.batch
        assert self._watchdog is not None
        seen = self._watchdog.state_dict()
        for file in self._checkpoints.latest_first(until) if self._checkpoints else ():
            try:
                self.manager = rewind(self.manager, file, self.model, self.optimizers, **self._load_options)
            except CheckpointError as error:
                logger.warning("%s", error)
                continue
            # The data continue: the batches before the divergence are not repeated.
            progress.step, progress.epoch, progress.batch = position
            self._watchdog.load_state_dict(seen)
            if self._link is not None:
                self._link.manager = self.manager
            self.growth = self._begin_growth(self._grow)
            assert self._checkpoints is not None
            self._checkpoints.drop_after(file, self.manager.peers)
            return True
        return False


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _is_by_metric(scheduler: Any) -> bool:
    """Whether it is stepped after an epoch, with a loss."""
    return isinstance(scheduler, ReduceLROnPlateau)
