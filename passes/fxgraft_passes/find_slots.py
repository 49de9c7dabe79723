"""Find the nodes behind which a seed may go, and for the others the reason why not.

before::

    relu = self.relu(x)
    size = relu.size(0)

after (the graph is the same; ``meta`` is annotated)::

    relu = self.relu(x)             # meta["slot"] = Slot("relu", shape=..., dtype=...)
    size = relu.size(0)             # meta["no_slot"] = "is a int, not a tensor"
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx as fx
from torch import nn
from torch.fx.passes.infra.pass_base import PassResult

from fxgraft_passes._liveness import liveness_of
from fxgraft_passes.base import GraphPass
from fxgraft_passes.errors import SlotError
from fxgraft_passes.example_calls import check_example
from fxgraft_passes.metadata import metadata
from fxgraft_passes.naming import qualified_names
from fxgraft_passes.observe import Observation, observation_of, observe


@dataclass(frozen=True)
class Slot:
    """A place for a seed: behind the value of ``node``.

    Attributes:
        name: as torchvision's feature extraction names nodes, ``layer1.0.relu_1``.
        node: the graph node.
        shape: the shape of the value in the example run (the batch size may differ later).
        dtype, device: the dtype and the device of the value.
        channels_last: whether a 4-D value has the memory format ``torch.channels_last``.
        copy: whether a later operation writes into the value, so that an isolated graft has to copy it.
        region: the qualified name of the module whose graph holds the node.
        source: for a branch, the earlier slot whose value the seed reads; None: it reads that of this slot.
        merged: for a branch between regions, the regions that run as one graph, the outermost first.
        reader: for an edge, the only node that gets the seed's output; None: all readers get it.
        others: further nodes behind which the same seed runs, each with its own value.
        owner: of a branch, a weak reference to the module whose graph it is.
    """

    name: str
    node: fx.Node
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    channels_last: bool = False
    copy: bool = False
    region: str = ""
    source: Slot | None = None
    merged: tuple[str, ...] = ()
    reader: fx.Node | None = None
    others: tuple[fx.Node, ...] = ()
    owner: weakref.ReferenceType[nn.Module] | None = field(default=None, repr=False, compare=False)

    @property
    def root(self) -> nn.Module | None:
        """Where modules that the graph calls are found by their names; None where that is not known."""
        return None if self.owner is None else self.owner()

    @property
    def input(self) -> Slot:
        """The slot whose value a seed here reads. Its input is like that slot, its output like this one."""
        return self.source or self

    @property
    def names(self) -> tuple[str, str | None]:
        """Its own name, and that of its source or None."""
        return self.name, None if self.source is None else self.source.name

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Nodes are linked to all of their graph; after unpickling the slot is looked up there, by its name.
        return {**self.__dict__, "node": None, "reader": None, "others": (), "owner": None}


@dataclass(frozen=True)
class FindSlots(GraphPass):
    """Annotate each node with a `Slot`, or with the reason why it is none. The graph is not modified.

    Attributes:
        example_args: inputs to run once, if the nodes have no observed values yet.
        region: the prefix of all names: the path of the module.

    Raises:
        SlotError: the example inputs are no tuple, or the module does not run with them.
    """

    example_args: tuple[Any, ...] | None = None
    region: str = ""

    def apply(self, graph_module: fx.GraphModule) -> PassResult:
        if self.example_args is not None:
            check_example(graph_module, self.example_args, {}, "FindSlots", SlotError)
            observe(graph_module, *self.example_args)
        return PassResult(graph_module, self.rewrite(graph_module.graph))

    def rewrite(self, graph: fx.Graph) -> bool:
        live = liveness_of(graph).values
        for node, name in qualified_names(graph, self.region).items():
            seen = observation_of(node)
            reason = _objection(node, seen, live)
            metadata(node).pop("slot", None)
            metadata(node).pop("no_slot", None)
            if reason is not None:
                metadata(node)["no_slot"] = reason
            else:
                assert seen is not None
                metadata(node)["slot"] = _slot(name, node, seen, self.region)
            metadata(node)["qualified_name"] = name
        return False


def slots_of(graph: fx.Graph) -> list[Slot]:
    """The slots that `FindSlots` found, in graph order.

    Args:
        graph: one that `FindSlots` has marked.
    """
    return [metadata(node)["slot"] for node in graph.nodes if "slot" in metadata(node)]


def slot_behind(node: fx.Node, name: str, region: str, reader: fx.Node) -> Slot | str:
    """The slot on the edge from ``node`` to ``reader``; or why there is none, as in "the value <reason>"."""
    seen = observation_of(node)
    live = liveness_of(node.graph)
    reason = _objection(node, seen, live.values if reader in live.nodes else set())
    if reason is not None or seen is None:
        return str(reason)
    return replace(_slot(name, node, seen, region), reader=reader)


def rejections_of(graph: fx.Graph) -> dict[str, str]:
    """Name -> reason for the nodes that are no slots.

    Args:
        graph: one that `FindSlots` has marked.
    """
    return {
        metadata(node)["qualified_name"]: metadata(node)["no_slot"]
        for node in graph.nodes
        if "no_slot" in metadata(node)
    }


def _slot(name: str, node: fx.Node, seen: Observation, region: str) -> Slot:
    return Slot(
        name, node, seen.shape, seen.dtype, seen.device, seen.channels_last, seen.written_later, region
    )


def _objection(node: fx.Node, seen: Observation | None, live: set[fx.Node]) -> str | None:
    """Why no seed may go behind ``node``, or None."""
    if node.op == "get_attr":
        return "is a parameter or buffer, not a computed value"
    if node not in live:
        return "is a dead branch: its value reaches neither the output nor what outlives the call"
    if seen is None:
        return "was not reached in the example run"
    if seen.kind != "Tensor":
        return f"is a {seen.kind}, not a dense tensor"
    if seen.dtype.is_complex:
        return f"is complex ({seen.dtype}), and a seed needs real floating point values: take one behind it"
    if not seen.dtype.is_floating_point:
        return f"is {seen.dtype}, and a seed needs a floating point value"
    if not seen.uniform:
        return f"had different shapes or dtypes in its {seen.calls} calls"
    if not seen.differentiable:
        return "is computed under no_grad, so a seed would never learn"
    if seen.read_elsewhere:
        return (
            f"is the very tensor that it gets, which {seen.read_elsewhere} reads as well: with a graft in "
            f"between its gradients would be summed up in another order"
        )
    return _in_place_hazard(node, seen) if seen.written_later else None


def _in_place_hazard(node: fx.Node, seen: Observation) -> str | None:
    """A value that is written into later may be copied only if nothing else reads its memory."""
    if not seen.dense:
        return "is changed in place later, and a copy would not preserve its strides"
    position = {other: i for i, other in enumerate(node.graph.nodes)}
    last_reader = max((position[user] for user in node.users), default=0)
    for other in node.graph.nodes:
        theirs = observation_of(other)
        if other is node or theirs is None or theirs.memory != seen.memory:
            continue
        if other.op in ("placeholder", "get_attr"):
            return f"is changed in place later and shares its memory with {other}"
        if _is_derived(other, node):
            continue
        if any(position[user] > position[node] for user in other.users if user is not node):
            return (
                f"is changed in place later, and {other}, which shares its memory, is read after "
                f"that (position {last_reader})"
            )
    return None


def _is_derived(other: fx.Node, node: fx.Node) -> bool:
    """Whether ``other`` is computed from ``node``, so that it follows the copy."""
    seen, front = set(), [node]
    while front:
        for user in front.pop().users:
            if user is other:
                return True
            if user not in seen:
                seen.add(user)
                front.append(user)
    return False
