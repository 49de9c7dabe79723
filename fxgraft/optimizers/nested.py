"""Optimizers inside of optimizers (SAM, Lookahead): their states know the same parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
