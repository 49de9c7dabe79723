"""Widening as a candidate: a branch with the new channels is tried in their place.

    in --> producers (+ by channels) --> ... --> consumer --> out

    in --> a branch with ``by`` channels inside -----------> + out       blueprint "parallel"

A layer that grows by channels which only the next layer reads computes what it did plus such a branch with
their structure. The branch is tried as any candidate is; if it stays, it is fused into the layers.

A group is tried with as many channels more as it has, or a half or a quarter of that where there is no room.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch.fx as fx
from torch import nn

from fxgraft.commands import SEED
from fxgraft.errors import FxGraftError
from fxgraft.host.host import Host
from fxgraft_passes import Slot
from fxgraft_passes.channels.groups import ChannelGroup

SHARES = (1, 2, 4)
"""What the channels of a group are divided by for the numbers that it may be tried with."""


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


@dataclass(frozen=True)
class Surrogate:
    """The branch that is tried in the place of wider layers.

    Attributes:
        group: the channels.
        slot: where it is blended in: behind the layer that reads the channels.
        source: what it reads: the value that the layers read which make the channels.
    """

    group: ChannelGroup
    slot: Slot
    source: str

    def numbers(self) -> Iterator[int]:
        """The numbers of channels more that may be tried, the largest first."""
        grain = self.group.grain
        yield from dict.fromkeys(max(self.group.size // share // grain, 1) * grain for share in SHARES)

    def command(self, by: int) -> SEED:
        """What germinates it with ``by`` channels."""
        config = {"channels": by}
        return SEED(slot=self.slot.name, blueprint="parallel", source=self.source, config=config)


def surrogates(host: Host) -> Iterator[tuple[ChannelGroup, Surrogate | str]]:
    """Each group that can grow, with its surrogate, or why there is none."""
    try:
        channels = host.channels
    except FxGraftError:  # a host that cannot be analysed has branches to offer all the same
        return
    values = _Values(host)
    for group in channels.values():
        if group.fixed is None:
            yield group, values.surrogate(group)


class _Values:
    """Where the values of a host are made and read."""

    def __init__(self, host: Host):
        self._host = host

    @cached_property
    def _slots(self) -> dict[fx.Node, Slot]:
        return {slot.node: slot for slot in self._host.slots.values()}

    @cached_property
    def _calls(self) -> dict[nn.Module, list[tuple[str, fx.Node]]]:
        """Layer -> the regions and the nodes that call it."""
        found: dict[nn.Module, list[tuple[str, fx.Node]]] = {}
        for name, region in self._host.regions.items():
            for node in region.base.find_nodes(op="call_module"):
                layer = region.module.get_submodule(str(node.target))
                found.setdefault(layer, []).append((name, node))
        return found

    def surrogate(self, group: ChannelGroup) -> Surrogate | str:
        """The surrogate of ``group``, or why there is none."""
        made = {member.path for member in group.members if member.role == "producer"}
        read = {member.path for member in group.members if member.role == "consumer"}
        members = {m.name: getattr(self._host.get_submodule(m.path), m.parameter) for m in group.members}
        if frozen := [n for n, p in members.items() if isinstance(p, nn.Parameter) and not p.requires_grad]:
            return f"{frozen[0]} is frozen, and what the branch learns could not become a part of it"
        if group.grain > 1:
            return "they are heads"
        if len(read) != 1 or not made or made & read:
            return f"{len(made)} layers make them and {len(read)} read them"
        layers = [self._host.get_submodule(path) for path in (*made, *read)]
        calls = [self._calls.get(layer, []) for layer in layers]
        if any(len(each) != 1 for each in calls):
            return "one of their layers is called by code without a graph, or several times"
        if len({region for ((region, _),) in calls}) > 1:
            return "the layers that make them are in one module, and their reader in another"
        (_, consumer), inputs = calls[-1][0], {node.all_input_nodes[0] for ((_, node),) in calls[:-1]}
        slot = self._slots.get(consumer)
        if slot is None or len(inputs) != 1:
            return "the layers that make them read different values" if slot else "their reader is no slot"
        source = self._name(calls[0][0][0], inputs.pop())
        if source is None:
            return "what they are made from is no slot"
        return Surrogate(group, slot, source)

    def _name(self, region: str, value: fx.Node) -> str | None:
        """What a value is called as the source of a branch: a slot, or an argument of a module."""
        if value in self._slots:
            return self._slots[value].name
        known = self._host.regions[region].form.inputs if value.op == "placeholder" else ()
        expression = next((one.expression for one in known if one.name == value.target), None)
        return None if expression is None else f"{region}@{expression}"
