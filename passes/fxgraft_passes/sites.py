"""Which nodes of a graph belong to a graft: the one place that knows how a graft is marked.

The node whose value leaves a slot carries ``meta["graft"]``, a `GraftSite`; all nodes of the graft
carry its name in ``meta["graft_of"]``. Of a branch, which reads the value of an earlier node, the node
that reads it carries ``meta["reads_source"]``. What else a graft reads of the graph around it is the
host's value at its slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch.fx as fx

from fxgraft_passes.errors import FxGraftError
from fxgraft_passes.graft import GraftSpec
from fxgraft_passes.metadata import metadata


@dataclass(frozen=True)
class GraftSite:
    """One graft in a graph.

    Attributes:
        name: the name of the seed.
        node: the name of the node whose value is the slot.
        path: the path of the `Graft` in the module.
        spec: how the seed is wired.
        source: the earlier node whose value the seed reads; None: it reads that of ``node``.
    """

    name: str
    node: str
    path: str
    spec: GraftSpec
    source: str | None = None


def mark(site: GraftSite, exit_node: fx.Node, nodes: Iterable[fx.Node]) -> None:
    """Mark ``nodes`` as the graft ``site``, of which ``exit_node`` carries the value out."""
    for node in nodes:
        metadata(node)["graft_of"] = site.name
    metadata(exit_node)["graft"] = site


def site_of(node: fx.Node) -> GraftSite | None:
    """The graft whose value leaves at ``node``, or None."""
    site = metadata(node).get("graft")
    return site if isinstance(site, GraftSite) else None


def exits(graph: fx.Graph) -> Iterator[tuple[GraftSite, fx.Node]]:
    """Every graft of the graph with its exit node, in execution order."""
    for node in graph.nodes:
        if site := site_of(node):
            yield site, node


def exit_of(graph: fx.Graph, name: str) -> tuple[GraftSite, fx.Node] | None:
    """The graft of the seed ``name`` with its exit node, or None."""
    return next(((site, node) for site, node in exits(graph) if site.name == name), None)


def mark_reader(node: fx.Node) -> None:
    """Mark the node of a branch that reads the source."""
    metadata(node)["reads_source"] = True


def host_value(exit_node: fx.Node) -> fx.Node:
    """The node that a graft stands behind."""
    name = metadata(exit_node)["graft_of"]
    front = [exit_node]
    while front:
        node = front.pop()
        for value in () if "reads_source" in metadata(node) else _read(node):
            if metadata(value).get("graft_of") != name:
                return value
            front.append(value)
    raise FxGraftError(
        f"the graft of seed {name!r} reads nothing of the graph that it is in. "
        f"Rewrite the module that Germinate returned"
    )


def _read(node: fx.Node) -> list[fx.Node]:
    """What a node of a graft reads of values; of a call with further arguments, the one that it is of."""
    if "called_with" not in metadata(node):
        return node.all_input_nodes
    place = metadata(node)["called_with"]
    value = node.kwargs[place] if isinstance(place, str) else node.args[place]
    assert isinstance(value, fx.Node)
    return [value]


def chain_at(slot: fx.Node) -> list[tuple[GraftSite, fx.Node]]:
    """The grafts at one slot in the order in which they run."""
    # Not the users of a value alone: a fossil's value may leave by a copy, which reads the seed's.
    behind = {
        host_value(exit_node): (site, exit_node)
        for site, exit_node in exits(slot.graph)
        if site.node == slot.name
    }
    chain: list[tuple[GraftSite, fx.Node]] = []
    value = slot
    while value in behind:
        chain.append(behind[value])
        value = chain[-1][1]
    return chain


def end_of_chain(slot: fx.Node) -> fx.Node:
    """The node whose value leaves a slot: that of its last graft, or its own."""
    chain = chain_at(slot)
    return chain[-1][1] if chain else slot


def graft_behind(exit_node: fx.Node, slot: str) -> tuple[GraftSite, fx.Node] | None:
    """The graft of the slot (a node's name) that reads what leaves another one; None behind the last."""
    for site, other in exits(exit_node.graph):
        if site.node == slot and host_value(other) is exit_node:
            return site, other
    return None


def nodes_of(graph: fx.Graph, name: str) -> list[fx.Node]:
    """All nodes that the graft of the seed ``name`` put into the graph."""
    return [node for node in graph.nodes if metadata(node).get("graft_of") == name]
