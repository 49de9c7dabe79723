"""The numbers of blocks, which say what part of a cache is a block's, and how many there are in all.

A new block gets a number, ``layer_idx``, that no other has. They stand in running order again in what
`fxgraft.unwrap` makes.

transformers' models have ``config.num_hidden_layers`` (and ``config.layer_types``), and make a cache with a
part for each. While blocks with numbers are inserted, the modules of a host read a copy of the configuration,
in which there are as many; the model's own stays as it is, and comes back when they are gone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from fxgraft.capture.region import Region
from fxgraft.errors import SlotError
from fxgraft.host.stacks import Stack, Stacks, is_inserted

_OF_BLOCKS = "layer|block|depth|level|stage|attn|attention"
_NAMED = re.compile(rf"_*(({_OF_BLOCKS})_?)?(idx|index|id|number|num|no)")
_NAMED_OR_SHORT = re.compile(rf"{_NAMED.pattern}|_*({_OF_BLOCKS}|i|n|pos|position)")
"""Of one block nothing tells but the name; of several the name, and that they count up, as sizes may, too."""

Numbers = tuple[tuple[str, str], ...]
"""Paths of modules in a block, and the attributes there that hold its number."""


def numbers_in(blocks: Sequence[nn.Module]) -> Numbers:
    """Where the blocks of a model, in their order, have their numbers: in modules that all of them have."""
    found = []
    parts = [dict(block.named_modules()) for block in blocks]
    for path, module in parts[0].items():
        if any(path not in others for others in parts) or type(module).__module__.startswith("torch."):
            continue
        for name, value in module.__dict__.items():
            if type(value) is not int:
                continue
            values = [getattr(others[path], name, None) for others in parts]
            if len(blocks) == 1:
                if value == 0 and _NAMED.fullmatch(name):
                    found.append((path, name))
            elif _NAMED_OR_SHORT.fullmatch(name) and values == list(range(value, value + len(blocks))):
                found.append((path, name))
    return tuple(found)


def next_number(blocks: Sequence[nn.Module], numbers: Numbers) -> int | None:
    """A number that none of the blocks has; None where they have none."""
    taken = [getattr(block.get_submodule(path), name) for block in blocks for path, name in numbers]
    return max(taken) + 1 if taken else None


def set_number(block: nn.Module, numbers: Numbers, number: int) -> None:
    """Set the number of a block."""
    for path, name in numbers:
        setattr(block.get_submodule(path), name, number)


DEPTH = "num_hidden_layers"
KINDS = "layer_types"


class Depths:
    """The configurations of a host's stacks."""

    def __init__(self) -> None:
        self._own: dict[str, Any] = {}
        self._now: dict[str, Any] = {}

    def follow(self, root: nn.Module, stacks: Stacks, regions: Mapping[str, Region]) -> None:
        """Give the modules of ``root`` configurations with the present depth of the stacks."""
        for path, stack in stacks.items():
            has_grown = any(is_inserted(block) for block in stack.blocks)
            if path not in self._own and (not has_grown or path.startswith("_")):
                continue
            if path not in self._own and (found := config_of(root, path)) is not None:
                self._own[path] = self._now[path] = found
            if path in self._own:
                self._give(
                    root,
                    path,
                    with_blocks_of(self._own[path], stack, regions) if has_grown else self._own[path],
                )
        for path in [path for path in self._own if path not in stacks]:
            self._give(root, path, self._own[path])

    def is_copy(self, config: Any) -> bool:
        """Whether that is a copy that modules read while blocks are inserted."""
        return any(now is config and self._own[path] is not config for path, now in self._now.items())

    def _give(self, root: nn.Module, path: str, config: Any) -> None:
        give(root, self._now[path], config)
        self._now[path] = config


def config_of(root: nn.Module, stack: str) -> Any:
    """The configuration that says how many blocks a stack has; None where there is none."""
    count = len(root.get_submodule(stack)._modules)
    path = stack
    while path:
        path = path.rpartition(".")[0]
        found = root.get_submodule(path).__dict__.get("config")
        if found is not None and getattr(found, DEPTH, None) == count:
            return found
    return None


def give(root: nn.Module, old: Any, new: Any) -> None:
    """Replace ``old`` by ``new`` in all modules."""
    for module in root.modules():
        if module.__dict__.get("config") is old and old is not new:
            module.__dict__["config"] = new


def with_blocks_of(config: Any, stack: Stack, regions: Mapping[str, Region]) -> Any:
    """A copy of ``config`` with a part for each number that a block of the stack has.

    Raises:
        SlotError: as `of_depth`.
    """
    blocks = [name for name in stack.blocks if not is_inserted(name)]
    numbers = numbers_in([regions[name].module for name in blocks])
    if not numbers:
        return config
    path, attribute = numbers[0]
    taken = {name: getattr(regions[name].module.get_submodule(path), attribute) for name in stack.blocks}
    depth = max(taken.values()) + 1
    kinds = kinds_of(config)
    if kinds is None or len(kinds) != getattr(config, DEPTH):
        return of_depth(config, depth)
    found = [*kinds, *[kinds[-1]] * (depth - len(kinds))]
    last = kinds[0]
    for name in stack.blocks:  # a new block runs with what its neighbour in front is given
        last = last if is_inserted(name) else found[taken[name]]
        found[taken[name]] = last
    return of_depth(config, depth, found)


def kinds_of(config: Any) -> Sequence[Any] | None:
    """What a configuration says of each block; None where it says nothing."""
    found = getattr(config, KINDS, None)
    return found if isinstance(found, (list, tuple)) else None


def of_depth(config: Any, depth: int, kinds: Sequence[Any] | None = None) -> Any:
    """A copy of ``config`` for so many blocks of these kinds.

    A class may compute one of the two from other settings (Mamba all kinds from the depth, NemotronH the
    depth from the kinds), and take no value then. What counts is what the copy says in the end.

    Raises:
        SlotError: it says something else.
    """
    made = copy.deepcopy(config)
    wanted = {DEPTH: depth} if kinds is None else {KINDS: list(kinds), DEPTH: depth}
    for name, value in wanted.items():
        with suppress(AttributeError, NotImplementedError):
            setattr(made, name, value)
    for name, value in wanted.items():
        if (found := getattr(made, name)) != value:
            raise SlotError(
                f"{type(config).__name__} computes {name} from other settings: expected {value!r} for the "
                f"blocks that there would be; got {found!r}. Build the model with as many blocks, or deepen "
                f"by blocks with which it says that"
            )
    return made
