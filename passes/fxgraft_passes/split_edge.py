"""Give one reader of a value a node of its own to read: a seed behind it affects that reader only.

before::

    relu = self.relu(x)
    fc = self.fc(relu)
    add = relu + fc

after ``SplitEdge("relu", "fc")``::

    relu = self.relu(x)
    relu_to_fc = returned(relu)     # the very value
    fc = self.fc(relu_to_fc)
    add = relu + fc
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch.fx as fx

from fxgraft_passes import operators
from fxgraft_passes.base import GraphPass, node_named
from fxgraft_passes.errors import SlotError
from fxgraft_passes.metadata import metadata
from fxgraft_passes.sites import end_of_chain


@dataclass(frozen=True)
class SplitEdge(GraphPass):
    """Insert a node between the value of ``node`` and one reader. Does nothing if there is one already.

    Attributes:
        node: the name of the node whose value is read.
        reader: the name of the node that reads it; if it does so in several arguments, in all of them.

    Raises:
        SlotError: the reader does not read that value.
    """

    node: str
    reader: str

    def rewrite(self, graph: fx.Graph) -> bool:
        if self.split(graph) is not None:
            return False
        value, reader = node_named(graph, self.node), node_named(graph, self.reader)
        leaving = value and end_of_chain(value)
        if leaving is None or reader is None or leaving not in reader.all_input_nodes:
            given = "there is no such node" if leaving is None else f"it is read by {_listed(leaving.users)}"
            raise SlotError(
                f"edge {self.node} -> {self.reader}: expected a node that reads {self.node}; {given}"
            )
        with graph.inserting_before(reader):
            node = graph.call_function(operators.returned, (leaving,))
        node._rename(f"{self.node}_to_{self.reader}")
        metadata(node)["edge"] = (self.node, self.reader)
        if "observation" in metadata(leaving):
            metadata(node)["observation"] = metadata(leaving)["observation"]
        reader.replace_input_with(leaving, node)
        return True

    def split(self, graph: fx.Graph) -> fx.Node | None:
        """The inserted node, or None.

        Args:
            graph: the graph to look in.
        """
        return next(
            (node for node in graph.nodes if metadata(node).get("edge") == (self.node, self.reader)), None
        )


def _listed(nodes: Iterable[fx.Node]) -> str:
    return ", ".join(map(str, nodes)) or "none"
