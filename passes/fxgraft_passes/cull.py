"""Take a graft out: the graph is what it was before ``Germinate``, in text and in code.

before::

    relu = self.relu(x)
    seed_input = relu.detach()
    seed = self._seeds.a.module(seed_input)
    graft = isolated(relu, seed, 'residual', 'trust', 0.03, False)
    fc = self.fc(graft)

after::

    relu = self.relu(x)
    fc = self.fc(relu)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx as fx
from torch.fx.passes.infra.pass_base import PassResult

from fxgraft_passes._recovering import recover, refuse_lost
from fxgraft_passes.base import GraphPass
from fxgraft_passes.graft import take_out
from fxgraft_passes.sites import exit_of, host_value, nodes_of


@dataclass(frozen=True)
class Cull(GraphPass):
    """Remove the graft of a seed. Does nothing if there is none.

    Attributes:
        name: the name of the seed.
    """

    name: str

    def rewrite(self, graph: fx.Graph) -> bool:
        found = exit_of(graph, self.name)
        if found is None:
            refuse_lost(graph, self.name, "cull")
            return False
        _, exit_node = found
        graft = nodes_of(graph, self.name)
        host = host_value(exit_node)
        for consumer in list(exit_node.users):
            consumer.replace_input_with(exit_node, host)
        for node in reversed(graft):
            graph.erase_node(node)
        return True

    def apply(self, graph_module: fx.GraphModule) -> PassResult:
        recover(graph_module.graph)
        found = exit_of(graph_module.graph, self.name)
        result = super().apply(graph_module)
        if found is not None:
            take_out(graph_module, found[0].path)
        return result
