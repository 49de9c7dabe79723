"""Deepening as a candidate: one more block behind each block of a stack, isolated while it is tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fxgraft import commands
from fxgraft.commands import SEED
from fxgraft.errors import SlotError
from fxgraft.host.host import Host
from fxgraft_passes.graft import SEEDS

DEEPEN = "deepen"
"""In the place of a blueprint's name."""


@dataclass(frozen=True)
class Depth:
    """A place for one more block.

    Attributes:
        stack: one of ``host.stacks``.
        at: the index of the block to stand behind.
        block: the qualified name of that block, of which it is a copy.
        parameters: how many the block has.
    """

    stack: str
    at: int
    block: str
    parameters: int


def depths(host: Host) -> Iterator[SEED]:
    """A place behind each block of each stack, as a command; not behind a block that is only tried."""
    tried = tuple(f"{SEEDS}.{p.seed}." for p in host.structure.placements if p.spec.fossil is None)
    for name, stack in host.stacks.items():
        for at, block in enumerate(stack.blocks):
            if block.startswith(tried):
                continue
            yield SEED(slot=block, blueprint=DEEPEN, config={"stack": name, "at": at})


def depth_of(host: Host, seed: SEED) -> Depth:
    """The place that such a command names. Raises `SlotError`."""
    name, at = seed.config.get("stack"), seed.config.get("at")
    stack = host.stacks.get(name) if isinstance(name, str) else None
    if stack is None or type(at) is not int or not 0 <= at < len(stack.blocks):
        known = ", ".join(f"{path} ({len(found)} blocks)" for path, found in host.stacks.items()) or "none"
        raise SlotError(
            f"deepen: expected {{'stack': name, 'at': index of a block}} of one of host.stacks; got "
            f"{dict(seed.config)}; there are: {known}"
        )
    block = stack.blocks[at]
    learnt = [p for p in host.get_submodule(block).parameters() if p.requires_grad]
    return Depth(str(name), at, block, sum(p.numel() for p in learnt))


def block_of(host: Host, given: object) -> commands.DEEPEN | None:
    """The command for one more block, where candidates are one. Raises `SlotError` or `ValueError`."""
    if isinstance(given, Mapping) and given.get("type") == commands.DEEPEN.__name__:
        given = commands.parse(given)
    if not isinstance(given, commands.DEEPEN):
        return None
    if given.stack not in host.stacks:
        known = ", ".join(host.stacks) or "none"
        raise SlotError(f"candidates: expected a DEEPEN of one of host.stacks ({known}); got {given.stack!r}")
    if given.count != 1 or given.isolated or given.name is not None:
        raise ValueError(
            f"candidates: expected a DEEPEN with count=1, isolated=False and no name, which is tried again "
            f"and again; got {given}"
        )
    return replace(given, id=None)  # by which it would be carried out once only
