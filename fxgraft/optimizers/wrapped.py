"""Optimizers in others: inside of them (SAM, Lookahead), and in wrappers (Accelerate, Fabric).

The states of nested ones know the same parameters. A wrapper has nothing of its own to save or to group:
what is done with it is done with what is inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.optim import Optimizer


def nested(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizers that ``optimizer`` holds in attributes, and those in these; each once, not itself."""
    seen, waiting = {id(optimizer)}, [optimizer]
    while waiting:
        for value in vars(waiting.pop()).values():
            if isinstance(value, Optimizer) and id(value) not in seen:
                seen.add(id(value))
                waiting.append(value)
                yield value


def with_nested(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Each optimizer, and behind it those inside of it."""
    return [holder for optimizer in optimizers for holder in (optimizer, *nested(optimizer))]


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
