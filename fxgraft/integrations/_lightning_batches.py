"""The latest batches of a Lightning training, to measure seeds on where no evaluation was given."""

from __future__ import annotations

from collections import deque
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from fxgraft.integrations._carrier import AUTO, LATEST
from fxgraft_passes.untouched import untouched


class LatestBatches:
    """The latest batches of a training, to measure on with the module's own ``training_step``.

    Args:
        module: the module that is trained.

    Raises:
        ValueError: its ``training_step`` makes optimizer steps itself.
    """

    def __init__(self, module: LightningModule):
        if not module.automatic_optimization:
            raise ValueError(
                f"GrowCallback({AUTO!r}): {type(module).__name__}.training_step makes optimizer steps "
                f"itself: expected grow={{'evaluate': ...}}, a function that returns a loss"
            )
        self._module = module
        self.batches: deque[Any] = deque(maxlen=LATEST)

    def losses(self) -> list[float]:
        """The losses of the batches, in eval mode. Nothing is logged, and the module is left as it was."""
        module = self._module
        with untouched(module):
            module.__dict__.update(log=_log_nothing, log_dict=_log_nothing)  # untouched takes them out again
            module.eval()
            return [_loss(module.training_step(batch, i)) for i, batch in enumerate(self.batches)]


def _log_nothing(*_: Any, **__: Any) -> None:
    """In the place of the module's ``log`` and ``log_dict``."""


def _loss(found: Any) -> float:
    loss = found.get("loss") if isinstance(found, dict) else found
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"GrowCallback({AUTO!r}): expected training_step to return a loss; got {type(loss).__name__}. "
            f"Give grow={{'evaluate': ...}}, a function that returns one"
        )
    return float(loss)
