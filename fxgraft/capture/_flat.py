"""A graph as a flat list, for pickling: the nodes of a graph are linked, and pickle would recurse along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.fx as fx

from fxgraft_passes.metadata import metadata
from fxgraft_passes.observe import observation_of


@dataclass(frozen=True)
class _Reference:
    """Stands for the node of that name."""

    name: str


Flat = list[tuple[str, str, Any, Any, Any, Any]]


def flatten(graph: fx.Graph) -> Flat:
    """The nodes in order, with what was observed of each; other metadata can be made again."""
    return [
        (
            node.name,
            node.op,
            node.target,
            *fx.node.map_aggregate((node.args, node.kwargs), _refer),
            observation_of(node),
        )
        for node in graph.nodes
    ]


def _refer(argument: Any) -> Any:
    return _Reference(argument.name) if isinstance(argument, fx.Node) else argument


def unflatten(flat: Flat) -> fx.Graph:
    """The inverse of `flatten`."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for name, op, target, args, kwargs, seen in flat:
        args, kwargs = fx.node.map_aggregate(
            (args, kwargs), lambda a: nodes[a.name] if isinstance(a, _Reference) else a
        )
        nodes[name] = graph.create_node(op, target, args, kwargs, name=name)
        if seen is not None:
            metadata(nodes[name])["observation"] = seen
    return graph
