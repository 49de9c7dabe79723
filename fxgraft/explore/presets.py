"""Candidates for families of models where ``"auto"`` is too broad: a few, at the places that the family has.

    candidates = presets.decoder(host)
    manager.explore(candidates, evaluate=evaluate)

Places are found by the structure, never by names: the blocks of `Host.stacks`, and the last value
behind each stack that has the shape of a block's. Each preset gives commands: add to them, or take from them.

==========  ============================================================  ==========================
preset      behind each block                                             behind the last one
==========  ============================================================  ==========================
`decoder`   ``mlp``, causal ``attention``, one more block                 ``mlp``
`encoder`   ``mlp``, ``attention`` to both sides, one more block          ``mlp``
`vision`    as `encoder`: a vision transformer                            ``mlp``
`resnet`    ``conv_bottleneck``, ``squeeze_excite``, one more block       --
==========  ============================================================  ==========================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fxgraft.commands import SEED
from fxgraft.errors import BlueprintError, SlotError
from fxgraft.explore._depths import depths
from fxgraft.explore._fitting import priced
from fxgraft.host.host import Host
from fxgraft.host.stacks import Stack

__all__ = ["decoder", "encoder", "resnet", "vision"]

Kind = tuple[str, dict[str, Any]]
"""A blueprint and its options."""

MLP: Kind = ("mlp", {})


def decoder(host: Host) -> list[SEED]:
    """Candidates for language models with decoder blocks: GPT-2, Llama and similar ones.

    Args:
        host: a host whose blocks are in `Host.stacks`.

    Raises:
        SlotError: the host has no stack of equal blocks, or no candidate fits behind them.
    """
    return _behind_blocks(host, [MLP, ("attention", {"causal": True})], [MLP])


def encoder(host: Host) -> list[SEED]:
    """Candidates for encoders: BERT and similar ones. Arguments and errors as for `decoder`.

    Args:
        host: a host whose blocks are in `Host.stacks`.
    """
    return _behind_blocks(host, [MLP, ("attention", {"causal": False})], [MLP])


def vision(host: Host) -> list[SEED]:
    """Candidates for vision transformers. Arguments and errors as for `decoder`.

    Args:
        host: a host whose blocks are in `Host.stacks`.
    """
    return encoder(host)


def resnet(host: Host) -> list[SEED]:
    """Candidates for residual convolutional networks. Arguments and errors as for `decoder`.

    Args:
        host: a host whose blocks are in `Host.stacks`.
    """
    return _behind_blocks(host, [("conv_bottleneck", {}), ("squeeze_excite", {})], [])


def _behind_blocks(host: Host, inside: Sequence[Kind], at_the_end: Sequence[Kind]) -> list[SEED]:
    stacks = _innermost(host)
    if not stacks:
        raise SlotError(
            "presets: expected a host with a stack of alike blocks (host.stacks); there is none: "
            'choose the places with host.slots.select(...), or "auto"'
        )
    outputs = [slot for stack in stacks for block in stack.blocks for slot in _output(host, block)]
    last = [slot for stack in stacks for slot in _output(host, stack.blocks[-1])]
    ends = [behind for slot in last for behind in _last(host, slot)]
    found = [*_fitting(host, outputs, inside), *_fitting(host, ends, at_the_end)]
    if not found:
        names = ", ".join(name for name, _ in inside)
        where = ", ".join(stack.path for stack in stacks)
        raise SlotError(
            f"presets: none of {names} fits behind a block of {where}. Use candidates='auto', or name slots"
        )
    deeper = [seed for seed in depths(host) if seed.config["stack"] in {stack.path for stack in stacks}]
    return [*found, *deeper]


def _innermost(host: Host) -> list[Stack]:
    """The stacks whose blocks have two layers or more, and no such stack inside: not stages, not layers."""
    several = [stack for stack in host.stacks.values() if _layers(host, stack.blocks[0]) >= 2]
    return [
        stack
        for stack in several
        if not any(f"{other.path}.".startswith(f"{block}.") for other in several for block in stack.blocks)
    ]


def _layers(host: Host, block: str) -> int:
    return sum(parameter.dim() >= 2 for parameter in host.get_submodule(block).parameters())


def _fitting(host: Host, slots: Sequence[str], kinds: Sequence[Kind]) -> Iterator[SEED]:
    for slot in dict.fromkeys(slots):
        for name, config in kinds:
            seed = SEED(slot=slot, blueprint=name, config=config)
            try:
                priced(host, seed)
            except (SlotError, BlueprintError):  # blocks may be called by code that has no graph
                continue
            yield seed


def _output(host: Host, block: str) -> list[str]:
    """The slot with what a block returns: itself, or where its caller has no graph the last one in it."""
    if block in host.slots:
        return [block]
    return [name for name in host.slots if name.startswith(f"{block}.")][-1:]


def _last(host: Host, slot: str) -> list[str]:
    """The last value behind a slot that has its shape: what a head reads, most often that of a norm."""
    names = list(host.slots)
    behind = names[names.index(slot) + 1 :]
    return [name for name in behind if host.slots[name].shape == host.slots[slot].shape][-1:]
