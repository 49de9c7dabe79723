"""The numbers that blocks have: ``layer_idx`` says which part of a cache is a block's.

A new block gets a number that no other has. They stand in running order again in what `fxgraft.unwrap` makes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

_NAMED = re.compile(r"_*((layer|block|depth|attn|attention)_?)?(idx|index|id|number|num|no)")

Numbers = tuple[tuple[str, str], ...]
"""Paths of modules in a block, and the attributes there that hold its number."""


def numbers_in(blocks: Sequence[nn.Module]) -> Numbers:
    """Where the blocks of a model, in their order, have their numbers: in modules that all of them have."""
    found = []
    parts = [dict(block.named_modules()) for block in blocks]
    for path, module in parts[0].items():
        if any(path not in others for others in parts):
            continue
        for name, value in module.__dict__.items():
            if type(value) is not int:
                continue
            values = [getattr(others[path], name, None) for others in parts]
            if len(blocks) == 1:
                # Of one block nothing tells but the name.
                if value == 0 and _NAMED.fullmatch(name):
                    found.append((path, name))
            elif values == list(range(value, value + len(blocks))):
                found.append((path, name))
    return tuple(found)


def next_number(blocks: Sequence[nn.Module], numbers: Numbers) -> int | None:
    """A number that none of the blocks has; None where they have none."""
    taken = [getattr(block.get_submodule(path), name) for block in blocks for path, name in numbers]
    return max(taken) + 1 if taken else None


def set_number(block: nn.Module, numbers: Numbers, number: int) -> None:
    """Let a block have that number."""
    for path, name in numbers:
        setattr(block.get_submodule(path), name, number)
