"""Lightning: a callback that carries a manager. Needs lightning.

trainer = Trainer(callbacks=[GrowCallback(module.host, on_step=decide)], ...)
trainer.fit(module, loader)
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fxgraft.checkpoint import optimizers as optimizers_of_run
from fxgraft.errors import CheckpointError
from fxgraft.explore.measuring import Evaluate
from fxgraft.host.host import Host
from fxgraft.integrations._carrier import AUTO, Carrier
from fxgraft.integrations._lightning_batches import LatestBatches
from fxgraft.optimizers.wrapped import inner

ENTRY = "fxgraft"
"""The entry of Lightning's checkpoints with the managers' files, by the names of their hosts in the module.

Each is a tensor of bytes: no seed is pickled.
"""

__all__ = ["GrowCallback"]

SHARED = "fxgraft.optimizers"
"""The entry with the states of optimizers that train several hosts: each manager knows a part of them."""

_ELSEWHERE: dict[str, Any] = {"state": {}, "param_groups": [], ENTRY: "this state is in the entry 'fxgraft'"}
"""Stands for the state of an optimizer or scheduler. Without the callback no optimizer takes it."""

_AVERAGING = ("StochasticWeightAveraging", "WeightAveraging")
_TUNING = ("LearningRateFinder", "BatchSizeFinder")
"""Callbacks that train for a trial and load what was before; what grew meanwhile would be left."""


class GrowCallback(Carrier, Callback):  # type: ignore[misc]
    """Makes a manager when training begins, steps it, and saves and loads it within Lightning's checkpoints.

    The state of the module in a checkpoint has the weights of the host and of its seeds, and how these are
    wired: ``load_from_checkpoint``, and ``validate``, ``test``, ``predict`` with a ``ckpt_path`` have
    it, with a callback or without. An entry of the callback's own has optimizers and schedulers, which
    Lightning could not load into a host without seeds: ``fit(ckpt_path=...)`` continues with them.

    For several hosts in one module (a GAN), use one callback for each.

    One process, one device. To resume bit for bit, give the ``DataLoader`` a ``generator`` of its own:
    Lightning draws from the global stream for a loader without one, at other moments than in a run that was
    not interrupted.

    If the ``Trainer`` clips by norm, the callback clips instead, the host and each seed separately: with one
    norm over all parameters the seeds would affect the host.

    Args:
        host: the traced model, anywhere in the ``LightningModule``; ``"auto"``: the one that is in it, with
            automatic growth.
        on_step: called with the manager after each optimizer step, to germinate, blend and cull; ``"auto"``
            is automatic growth.
        grow: arguments of `SeedManager.autogrow`, as for a `Carrier`.
        **options: of `SeedManager`.

    Attributes:
        manager: the `SeedManager`; None before training begins. It is replaced when a state with other seeds
            is loaded (``test(ckpt_path=...)``), and in each ``fit``.
    """

    _path = ""
    _saved: bytes | None = None
    _loaded: dict[str, Any] | None = None
    _shared: dict[int, dict[str, Any]] | None = None
    _stepped = False
    _is_behind = False
    _hooks: Sequence[RemovableHandle] = ()
    _latest: LatestBatches | None = None
    _steps: int | None = None

    @property
    def state_key(self) -> str:
        """Names the callback where Lightning says that one of an earlier run is missing."""
        return f"{type(self).__qualname__}(host at {self._path!r})"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the host can be trained so.

        Args:
            trainer: the trainer.
            pl_module: the module that it trains.
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``; is not used.

        Raises:
            ValueError: the host is not in the module, or has another callback; there are several processes;
                or a callback averages weights without regard of what grows.
        """
        self._saved = self._loaded = self._shared = None
        self._find(pl_module)
        paths = [name for name, module in pl_module.named_modules() if module is self._host]
        if not paths:
            raise ValueError(
                f"GrowCallback(host): expected a host that {type(pl_module).__name__} holds "
                f"(self.host = fxgraft.trace(...)); got one that is not among its modules"
            )
        self._path = paths[0]
        if sum(callback._host is self._host for callback in _callbacks(trainer)) > 1:
            raise ValueError(f"GrowCallback(host): expected one for each host; {self._path!r} has several")
        if trainer.world_size > 1:
            raise ValueError(
                f"Trainer: expected one device; got {trainer.world_size}. Write the loop yourself, around "
                f"SeedManager(DistributedDataParallel(host), ...)"
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            kinds = {kind.__name__ for kind in type(callback).__mro__}
            if kinds & set(_TUNING):
                raise ValueError(
                    f"Trainer: {type(callback).__name__} trains for a trial, and takes weights back, but not "
                    f"what grew. Run it first, with a trainer without GrowCallback"
                )
            if kinds & set(_AVERAGING):
                raise ValueError(
                    f"Trainer: {type(callback).__name__} pairs weights with those of a copy, and what grows "
                    f"would be missing there. Use torch.optim.swa_utils.AveragedModel with "
                    f"fxgraft.averaging.follow, and update it in on_step"
                )
        # First: a checkpoint that another callback saves at the end of a batch has this step, too.
        trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]

    def _find(self, pl_module: LightningModule) -> None:
        """The host, where it was not given."""
        hosts = [module for module in pl_module.modules() if isinstance(module, Host)]
        if not self._is_bound:
            if len(hosts) != 1:
                raise ValueError(
                    f"GrowCallback({AUTO!r}): expected one host in {type(pl_module).__name__} (self.host = "
                    f"fxgraft.trace(...)); there are {len(hosts)}. Give a callback for each: "
                    f"GrowCallback(module.host, {AUTO!r})"
                )
            self._bind(hosts[0])

    def _evaluation(self) -> Evaluate:
        assert self._latest is not None
        return self._latest.losses

    def _total_steps(self) -> int | None:
        return self._steps

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the manager's file until there are optimizers to load it into.

        Args:
            trainer: the trainer.
            pl_module: the module that it trains.
            checkpoint: what Lightning has read; `on_fit_start` replaces the states of our optimizers in it.

        Raises:
            CheckpointError: training is resumed, and the checkpoint has no file of this host's manager, or
                has one of a host without a callback.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return  # the module's state has what grew
        entry = checkpoint.get(ENTRY, {})
        if not isinstance(entry.get(self._path), Tensor):
            raise CheckpointError(
                f"the checkpoint has no entry {ENTRY!r} for the host {self._path!r}: it was not saved with "
                f"GrowCallback. load_from_checkpoint has its weights; then fit without ckpt_path"
            )
        if missing := entry.keys() - {callback._path for callback in _callbacks(trainer)}:
            name = min(missing)
            raise CheckpointError(
                f"the checkpoint was saved with a GrowCallback for the host {name!r}, too: expected "
                f"Trainer(callbacks=[GrowCallback(module.{name}), ...])"
            )
        self._saved, self._loaded = entry[self._path].numpy().tobytes(), checkpoint
        self._shared = checkpoint.get(SHARED, {})
        self._is_behind = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("is_behind", False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep Lightning from loading what is in the managers' files.

        Args:
            trainer: the trainer.
            pl_module: the module that it trains.
        """
        if self._loaded is None:
            return
        there: dict[str, list[Any]] = {
            "optimizer_states": trainer.optimizers,
            "lr_schedulers": [config.scheduler for config in trainer.lr_scheduler_configs],
        }
        for key, several in there.items():
            states = zip(self._loaded[key], several, strict=False)
            self._loaded[key] = [one.state_dict() if ENTRY in state else state for state, one in states]
        self._loaded = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the manager; if the run is resumed, continue with the seeds of its checkpoint.

        Args:
            trainer: the trainer; its ``gradient_clip_val`` is None until the end.
            pl_module: the module that it trains.
        """
        if self._auto:
            steps = trainer.estimated_stepping_batches
            self._steps = int(steps) if math.isfinite(steps) and steps > 0 else None
            if "evaluate" not in self._grow:
                self._latest = LatestBatches(pl_module)
        optimizers = list(map(inner, trainer.optimizers))
        own = list(filter(self._trains, optimizers)) or optimizers  # of a frozen host: the manager says so
        for place, saved in (self._shared or {}).items():
            # Every host has the seeds of its state by now. In this order each manager finds its own places.
            optimizers_of_run.put(optimizers[place], saved["names"], saved["state"], pl_module)
        for callback in _callbacks(trainer):
            callback._shared = None
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        with tempfile.TemporaryDirectory() as folder:
            file = None
            if self._saved is not None:
                file = Path(folder) / "run"
                file.write_bytes(self._saved)
            of_own = [s for s in schedulers if any(inner(getattr(s, "optimizer", None)) is o for o in own)]
            self._start(own, of_own, file)
        self._saved, self._stepped = None, False
        if self._is_behind:  # it was saved between the optimizer's step and the end of the batch
            self._is_behind = False
            self._step(None)
        self._hooks = [optimizer.register_step_post_hook(self._on_optimizer_step) for optimizer in own]
        if trainer.gradient_clip_val is not None and trainer.gradient_clip_algorithm != "value":
            self._clip_norm, trainer.gradient_clip_val = trainer.gradient_clip_val, None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return clipping to the trainer.

        Args:
            trainer: the trainer; its ``gradient_clip_val`` is as before again.
            pl_module: the module that it trains.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._clip_norm is not None:
            trainer.gradient_clip_val, self._clip_norm = self._clip_norm, None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Return clipping to the trainer.

        Args:
            trainer: the trainer.
            pl_module: the module that it trains.
            exception: what ended the training; is not used.
        """
        self.on_train_end(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Clip each seed by its own norm, and all other parameters by one, as the trainer does.

        Args:
            trainer: the trainer.
            pl_module: the module that it trains.
            optimizer: the one that is to step; its gradients are clipped in place.
        """
        if self._clip_norm is None:
            return
        managers = [c.manager for c in _callbacks(trainer) if c.manager is not None]
        seeds = [manager.registry.parameters(name) for manager in managers for name in manager.seeds]
        of_seeds = {id(parameter) for parameters in seeds for parameter in parameters}
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        clip_grad_norm_([p for p in trained if id(p) not in of_seeds], self._clip_norm)
        for parameters in filter(None, seeds):
            clip_grad_norm_(parameters, self._clip_norm)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch, to measure on.

        Args:
            trainer: the trainer.
            pl_module: the module that it trains.
            batch: the batch, as the loader gave it.
            batch_idx: its index in the epoch, from 0; is not used.
        """
        if self._latest is not None:
            self._latest.batches.append(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Step the manager, if the host's optimizer made a step in this batch.

        Args:
            trainer: the trainer.
            pl_module: the module that it trains.
            outputs: what ``training_step`` returned; ``loss`` in it is the training loss.
            batch: the batch; is not used.
            batch_idx: its index in the epoch, from 0; is not used.
        """
        if self._stepped:
            self._stepped = False
            self._step(outputs.get("loss") if isinstance(outputs, dict) else None)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the manager's file, instead of the optimizers and schedulers that it contains.

        Args:
            trainer: the trainer.
            pl_module: the module that it trains.
            checkpoint: what Lightning is about to write; entries are added and replaced.
        """
        if self.manager is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            self.manager.save(Path(folder) / "run")
            content = (Path(folder) / "run").read_bytes()
        checkpoint.setdefault(ENTRY, {})[self._path] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        checkpoint["callbacks"][self.state_key] = {"steps": self.manager.steps, "is_behind": self._stepped}
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        others = [c.manager for c in _callbacks(trainer) if c is not self and c.manager is not None]
        states = checkpoint["optimizer_states"]
        for place, optimizer in enumerate(map(inner, trainer.optimizers)):
            if optimizer in self.manager.optimizers and ENTRY not in states[place]:
                if any(optimizer in other.optimizers for other in others):
                    names = optimizers_of_run.parameter_names(optimizer, pl_module)
                    checkpoint.setdefault(SHARED, {})[place] = {"names": names, "state": states[place]}
                states[place] = dict(_ELSEWHERE)
        for place, scheduler in enumerate(schedulers):
            if scheduler in self.manager.schedulers:
                checkpoint["lr_schedulers"][place] = dict(_ELSEWHERE)

    def _trains(self, optimizer: Optimizer) -> bool:
        parameters = {id(p) for p in self._host.parameters()}
        return any(id(p) in parameters for group in optimizer.param_groups for p in group["params"])

    def _on_optimizer_step(self, *_: Any) -> None:
        self._stepped = True


def _callbacks(trainer: Trainer) -> list[GrowCallback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, GrowCallback)]
