"""What Accelerate (and so transformers' ``Trainer``) and Fabric put around optimizers and schedulers.

Such a wrapper has nothing of its own to save or to group: everything here is done with what is inside.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

_WRAPPERS = {
    ("accelerate.optimizer", "AcceleratedOptimizer"): "optimizer",
    ("accelerate.scheduler", "AcceleratedScheduler"): "scheduler",
    ("lightning.fabric.wrappers", "_FabricOptimizer"): "optimizer",
}
"""Module and name of a class, or of a base of it -> the attribute with what is inside."""


def inner(given: Any) -> Any:
    """``given`` without the wrappers of Accelerate and Fabric; any other object is returned as it is."""
    kinds = {(kind.__module__, kind.__qualname__) for kind in type(given).__mro__}
    for kind, attribute in _WRAPPERS.items():
        if kind in kinds:
            return inner(getattr(given, attribute))
    return given


def schedules(scheduler: Any, optimizer: Optimizer) -> bool:
    """Whether ``scheduler`` sets the learning rates of ``optimizer``, be it through a wrapper of that."""
    return inner(getattr(scheduler, "optimizer", None)) is inner(optimizer)
