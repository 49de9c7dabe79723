"""The loss on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], criterion: Callable[[Any, Any], Tensor]
) -> float:
    """The mean of the losses of the batches, in eval mode and without gradients. The mode is restored.

    Args:
        model: a host, or any module that takes ``inputs`` as its only argument.
        batches: pairs of inputs and targets. Without any, the result is NaN.
        criterion: outputs and targets -> a loss, 0-d.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            losses = [float(criterion(model(inputs), target)) for inputs, target in batches]
    finally:
        model.train(training)
    return sum(losses) / len(losses) if losses else float("nan")
