"""What every callback does, by whatever names its framework calls it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fxgraft.host.host import Host
from fxgraft.manager.manager import SeedManager
from fxgraft.training.clipping import clip_per_owner


class Carrier:
    """Carries a manager through a training that somebody else leads. A base class.

    Where the trainer clips gradients by norm, a carrier does it in its place, each owner for itself: by one
    norm over all the host would feel its seeds.

    Args:
        host: the traced model that is trained.
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
        self._clip_norm: float | None = None  # what the trainer would clip to, while we do

    def _start(
        self,
        optimizers: Optimizer | Sequence[Optimizer],
        schedulers: Sequence[Any],
        file: str | os.PathLike[str] | None,
    ) -> None:
        """Make the manager; where there is a ``file`` of an earlier run, go on with that."""
        options = {"schedulers": schedulers, **self._options}
        if file is None:
            self.manager = SeedManager(self._host, optimizers, **options)
        else:
            self.manager = SeedManager.load(file, self._host, optimizers, **options)

    def _clip(self) -> None:
        if self._clip_norm is not None and self.manager is not None:
            clip_per_owner(self.manager, self._clip_norm)

    def _step(self, loss: float | Tensor | None = None) -> None:
        assert self.manager is not None
        self.manager.step(loss)
        self._on_step(self.manager)
