"""Parts that fit into any training loop: the loss on held-out data, and clipping for each owner apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from fxgraft.lifecycle.probing import mode_kept
from fxgraft.manager.manager import SeedManager


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], criterion: Callable[[Any, Any], Tensor]
) -> float:
    """The mean of the losses of the batches, in eval mode and without gradients. Modes are restored.

    Args:
        model: a host, or any module that takes ``inputs`` as its only argument.
        batches: pairs of inputs and targets. Without any, the result is NaN.
        criterion: outputs and targets -> a loss, 0-d.
    """
    with mode_kept(model), torch.no_grad():  # of each module: a frozen norm stays in eval mode
        model.eval()
        losses = [float(criterion(model(inputs), target)) for inputs, target in batches]
    return sum(losses) / len(losses) if losses else float("nan")


def clip_per_owner(manager: SeedManager, max_norm: float) -> None:
    """Clip the gradients of the host to the norm ``max_norm``, and those of each live seed separately, too.

    The host's are then, to the bit, what ``clip_grad_norm_(model.parameters(), max_norm)`` makes of them
    in a run without seeds.

    Args:
        manager: the manager of the host.
        max_norm: the largest 2-norm of the gradients of one owner.

    Raises:
        TypeError: ``manager`` is not a `SeedManager`.
    """
    if not isinstance(manager, SeedManager):
        raise TypeError(f"manager: expected a SeedManager; got {type(manager).__name__}")
    clip_grad_norm_(list(manager.host.host_parameters()), max_norm)
    for name in manager.seeds:
        if owned := manager.registry.parameters(name):
            clip_grad_norm_(owned, max_norm)
