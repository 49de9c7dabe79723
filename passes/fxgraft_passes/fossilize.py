"""Make a graft a plain part of the graph: no blend operator left, the seed's input attached.

before (``Phase.BLENDED``)::

    relu = self.relu(x)
    seed_input = relu.detach()
    seed = self._seeds.a.module(seed_input)
    alpha = self._seeds.a.alpha
    learning = self._seeds.a.learning
    graft = residual(relu, seed, alpha, learning, 'trust', 0.03)
    fc = self.fc(graft)

after::

    relu = self.relu(x)
    seed = self._seeds.a.module(relu)
    type_as = seed.type_as(relu)          # seed itself, but under autocast
    fossil = relu + type_as
    fc = self.fc(fossil)

A convex graft leaves just the seed; an ``alpha`` other than 1 is folded in as a constant. A branch
goes on reading its source, attached as well.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch.fx as fx

from fxgraft_passes._recovering import refuse_lost
from fxgraft_passes.base import GraphPass
from fxgraft_passes.cull import Cull
from fxgraft_passes.germinate import Germinate
from fxgraft_passes.sites import exit_of, graft_behind


@dataclass(frozen=True)
class Fossilize(GraphPass):
    """Make the graft of a seed permanent, with a constant alpha.

    Does nothing if there is no such graft, or if it is a fossil already.

    Attributes:
        name: the name of the seed.
        alpha: its share in the output of the slot from now on. Default 1.
    """

    name: str
    alpha: float = 1.0

    def rewrite(self, graph: fx.Graph) -> bool:
        found = exit_of(graph, self.name)
        if found is None:
            refuse_lost(graph, self.name, "fossilize")
            return False
        if found[0].spec.fossil is not None:
            return False
        site, exit_node = found
        behind = graft_behind(exit_node, site.node)
        Cull(self.name).rewrite(graph)
        spec = dataclasses.replace(site.spec, fossil=self.alpha)
        again = Germinate(
            site.node,
            site.name,
            spec=spec,
            path=site.path,
            source=site.source,
            before=None if behind is None else behind[0].name,
        )
        return again.rewrite(graph)
