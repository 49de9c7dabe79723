"""Widening as a candidate: a branch with the new hidden units stands for them while they are tried.

    in --> producer (+ by units) --> elementwise --> consumer --> out

    in --> mlp of ``by`` hidden units ---------------> + out         in isolation, then taken out

A layer that grows by units which only the next layer reads computes what it did plus such a branch. What the
branch learns is measured as that of any candidate. If it wins, the layers themselves grow (`widen`).
The branch has a GELU, whatever the host has there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fxgraft.commands import SEED
from fxgraft.errors import FxGraftError
from fxgraft.host.host import Host
from fxgraft_passes.channels.groups import ChannelGroup

SHARE = 4
"""A group is tried with a quarter more channels."""


@dataclass(frozen=True)
class Width:
    """A group of channels that may grow.

    Attributes:
        group: its name in ``host.channels``.
        by: how many channels more.
        parameters: how many parameters that is.
    """

    group: str
    by: int
    parameters: int


def widths(host: Host) -> Iterator[tuple[SEED, Width]]:
    """Groups between two linear layers that can grow, with the branch that stands for each."""
    try:
        channels = host.channels
    except FxGraftError:  # a host that cannot be analysed has branches to offer all the same
        return
    slots = host.slots
    behind = {slot.node: name for name, slot in slots.items()}
    for name, group in channels.items():
        ends = _ends(group)
        if group.fixed is not None or ends is None or not {*ends} <= slots.keys():
            continue
        producer, consumer = ends
        layers = [host.get_submodule(path) for path in ends]
        inputs = slots[producer].node.all_input_nodes
        if not all(type(layer) is nn.Linear for layer in layers) or len(inputs) != 1:
            continue
        if (source := behind.get(inputs[0])) is None:
            continue
        by = max(group.size // SHARE // group.grain, 1) * group.grain
        parameters = by * sum(
            host.get_submodule(m.path).get_parameter(m.parameter).numel() // group.size for m in group.members
        )
        seed = SEED(slot=consumer, blueprint="mlp", source=source, config={"hidden": by})
        yield seed, Width(name, by, parameters)


def _ends(group: ChannelGroup) -> tuple[str, str] | None:
    """The one layer that makes the channels and the one that reads them; None where it is not so simple."""
    made = {member.path for member in group.members if member.role == "producer"}
    read = {member.path for member in group.members if member.role == "consumer"}
    others = [member for member in group.members if member.role not in ("producer", "consumer")]
    if others or len(made) != 1 or len(read) != 1 or made == read:
        return None
    return made.pop(), read.pop()
