"""Prove on the graph what grafts promise. Nothing is rewritten.

before and after::

    relu = self.relu(x)
    seed_input = relu.detach()            # detach or release while isolated, else IsolationError
    seed = self._seeds.a.module(seed_input)
    graft = isolated(relu, seed, ...)     # the only way out of the seed, else IsolationError
    fc = self.fc(graft)                   # no other node reads relu, else SlotError

The graph as a whole must be well formed and acyclic, else FxGraftError.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx as fx

from fxgraft_passes.base import GraphPass
from fxgraft_passes.proofs import verify


@dataclass(frozen=True)
class Verify(GraphPass):
    """Check the isolation of every graft of the graph. The graph is not modified.

    Raises:
        IsolationError: a graft is not isolated as its spec says.
        SlotError: an operation reads the value of a slot past its graft.
        FxGraftError: the graph is not well formed.
    """

    def rewrite(self, graph: fx.Graph) -> bool:
        verify(graph)
        return False
