"""Which nodes of a graph belong to a graft: the one place that knows how a graft is marked.

The node whose value leaves a slot carries ``meta["graft"]``, a `GraftSite`; all nodes of the graft
carry its name in ``meta["graft_of"]``. The first argument of the exit node is the host's value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch.fx as fx

from fxgraft_passes.errors import FxGraftError
from fxgraft_passes.graft import GraftSpec


@dataclass(frozen=True)
class GraftSite:
    """One graft in a graph: the seed's ``name``, the slot's ``node``, the `Graft`'s ``path``."""

    name: str
    node: str
    path: str
    spec: GraftSpec


def mark(site: GraftSite, exit_node: fx.Node, nodes: Iterable[fx.Node]) -> None:
    """Mark ``nodes`` as the graft ``site``, of which ``exit_node`` carries the value out."""
    for node in nodes:
        node.meta["graft_of"] = site.name
    exit_node.meta["graft"] = site


def site_of(node: fx.Node) -> GraftSite | None:
    """The graft whose value leaves at ``node``, or None."""
    site = node.meta.get("graft")
    return site if isinstance(site, GraftSite) else None


def exits(graph: fx.Graph) -> Iterator[tuple[GraftSite, fx.Node]]:
    """Every graft of the graph with its exit node, in execution order."""
    for node in graph.nodes:
        if site := site_of(node):
            yield site, node


def exit_of(graph: fx.Graph, name: str) -> tuple[GraftSite, fx.Node] | None:
    """The graft of the seed ``name`` with its exit node, or None."""
    return next(((site, node) for site, node in exits(graph) if site.name == name), None)


def host_value(exit_node: fx.Node) -> fx.Node:
    """The node that a graft reads and stands behind."""
    name = exit_node.meta["graft_of"]
    front = [exit_node]
    while front:
        for source in front.pop().all_input_nodes:
            if source.meta.get("graft_of") != name:
                return source
            front.append(source)
    raise FxGraftError(f"the graft of seed {name!r} reads nothing of the graph that it is in")


def chain_at(slot: fx.Node) -> list[tuple[GraftSite, fx.Node]]:
    """The grafts at one slot in the order in which they run."""
    chain: list[tuple[GraftSite, fx.Node]] = []
    value = slot
    while following := _graft_behind(value, slot.name):
        chain.append(following)
        value = following[1]
    return chain


def _graft_behind(value: fx.Node, slot: str) -> tuple[GraftSite, fx.Node] | None:
    # Not among the users of `value` alone: a fossil's value may leave by a copy, which reads the seed's.
    for site, exit_node in exits(value.graph):
        if site.node == slot and host_value(exit_node) is value:
            return site, exit_node
    return None


def nodes_of(graph: fx.Graph, name: str) -> list[fx.Node]:
    """All nodes that the graft of the seed ``name`` put into the graph."""
    return [node for node in graph.nodes if node.meta.get("graft_of") == name]
