"""Optimizers inside of optimizers (SAM, Lookahead): their states know the same parameters."""

from __future__ import annotations

from collections.abc import Iterator

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
