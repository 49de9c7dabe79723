"""Inserted blocks as children of their container, in running order, so that the class's own code runs them.

    blocks.0, _seeds.new.module, blocks.1        ->        blocks.0, blocks.1, blocks.2

What says how deep a model is (``config.num_hidden_layers``, ``layer_idx``, ``n_layer`` of a module around
the blocks) says it of the deeper one. Whether its code computes the same then, the caller has to check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from fxgraft.errors import SlotError
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.host.numbering import config_of, give, kinds_of, numbers_in, of_depth
from fxgraft.host.stacks import Stack, is_inserted
from fxgraft_passes.graft import SEEDS

_DEPTHS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "depth", "n_blocks", "num_blocks")
"""Attributes of modules around blocks that may say how many there are."""


_COUNTED = re.compile(r"(.*?)(\d+)")


class CannotContainError(Exception):
    """Why a container cannot have them."""


def put_in(
    host: Host, root: nn.Module, module_of: Callable[[str], nn.Module], depths: bool
) -> dict[str, str]:
    """Put the inserted blocks of a host into the containers of its plain form.

    Args:
        host: whose stacks tell where they run.
        root: the plain form, which has no blocks in it yet.
        module_of: the plain form of a module, by its name in the host.
        depths: whether attributes of modules that may say how deep a model is are set.

    Returns:
        Name of a block in the host -> in the plain form, where that is another one.

    Raises:
        CannotContainError: the names in a container do not count its blocks, or a configuration cannot say
            of them.
    """
    renamed: dict[str, str] = {}
    stacks = [s for s in host.stacks.values() if any(is_inserted(block) for block in s.blocks)]
    for stack in sorted(stacks, key=lambda stack: stack.path.count(".")):
        container = module_of(stack.path)
        names = _in_order(stack, container)
        old = len(container._modules)
        config = None if stack.path.startswith(SEEDS) else config_of(root, stack.path)
        if config is None and not stack.path.startswith(SEEDS):
            config = _grown_config(host, root, stack)
        children = [module_of(name) for name in names]
        numbered = _numbered(stack, container, names)
        container._modules.clear()
        for name, child, own in zip(names, children, numbered, strict=True):
            container._modules[own] = child
            renamed[name] = f"{stack.path}.{own}".lstrip(".")
        _number(children, stack, names)
        if config is not None:
            try:
                deep = _deep(config, stack, names, old)
            except SlotError as error:
                raise CannotContainError(str(error)) from error
            give(root, config, deep)
            for part in (part for child in children for part in child.modules()):
                if type(part.__dict__.get("config")) is type(
                    deep
                ):  # copied with its block, at some other depth
                    part.__dict__["config"] = deep
        if depths and not stack.path.startswith(SEEDS):
            _set_depths(root, stack.path, old, len(children))
    return renamed


def _in_order(stack: Stack, container: nn.Module) -> list[str]:
    """The names of all children, those in front of the stack's blocks and behind among them."""
    own = [f"{stack.path}.{name}".lstrip(".") for name in container._modules]
    first = next(block for block in stack.blocks if not is_inserted(block))
    last = next(block for block in reversed(stack.blocks) if not is_inserted(block))
    return [*own[: own.index(first)], *stack.blocks, *own[own.index(last) + 1 :]]


def _numbered(stack: Stack, container: nn.Module, names: Sequence[str]) -> list[str]:
    """The names in the container of all children: ``0, 1, …``, or ``layer_0, layer_1, …`` for the blocks."""
    if all(name.isdigit() for name in container._modules):
        return [str(i) for i in range(len(names))]
    own = [name.rpartition(".")[2] for name in stack.blocks if not is_inserted(name)]
    counted = _COUNTED.fullmatch(own[0])
    prefix, first = (counted[1], int(counted[2])) if counted else ("", 0)
    if own != [f"{prefix}{first + i}" for i in range(len(own))]:
        raise CannotContainError(
            f"the blocks of {stack.path!r} are named {', '.join(own)}: expected numbers, or a word with a "
            f"number that counts them"
        )
    blocks = {name: f"{prefix}{first + i}" for i, name in enumerate(stack.blocks)}
    numbered = [blocks.get(name, name.rpartition(".")[2]) for name in names]
    if len(set(numbered)) < len(numbered):
        raise CannotContainError(
            f"{stack.path!r} has another child of a name that an inserted block would get"
        )
    return numbered


def _number(children: Sequence[nn.Module], stack: Stack, names: Sequence[str]) -> None:
    """Number the blocks in running order."""
    own = [child for child, name in zip(children, names, strict=True) if not is_inserted(name)]
    if any(type(child) is not stack.cls for child in own):
        return
    for path, name in numbers_in(own):
        first = getattr(own[0].get_submodule(path), name)
        for i, child in enumerate(children):
            setattr(child.get_submodule(path), name, first + i)


def _grown_config(host: Host, root: nn.Module, stack: Stack) -> Any:
    """The configuration as the host's modules read it now, which has a part for each number in use."""
    path = stack.path
    while path:
        path = path.rpartition(".")[0]
        found = root.get_submodule(path).__dict__.get("config")
        if found is not None and engine.has_deepened(host, found):
            return found
    return None


def _deep(config: Any, stack: Stack, names: Sequence[str], old: int) -> Any:
    kinds = kinds_of(config)
    if kinds is None:
        return of_depth(config, len(names))
    found, last = [], kinds[0]
    own = iter(kinds[:old])
    for name in names:
        last = last if is_inserted(name) else next(own)
        found.append(last)
    return of_depth(config, len(names), found)


def _set_depths(root: nn.Module, path: str, old: int, new: int) -> None:
    while path:
        path = path.rpartition(".")[0]
        attributes = root.get_submodule(path).__dict__
        for name in _DEPTHS:
            if type(attributes.get(name)) is int and attributes[name] == old:
                attributes[name] = new
