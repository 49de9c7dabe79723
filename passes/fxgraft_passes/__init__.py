"""The graph rewrites of fxgraft, usable alone on any ``torch.fx.GraphModule``.

>>> from fxgraft_passes import FindSlots, Germinate, slots_of
>>> FindSlots(example_args=(x,))(graph_module)                        # doctest: +SKIP
>>> Germinate(node="relu", name="a", seed=nn.Linear(8, 8))(graph_module)  # doctest: +SKIP

===============  ==================================================================================
`base`           the contract of a pass, which changes a module as a whole, or not at all
`find_slots`     pass: where a seed may go
`germinate`      pass: insert a seed behind a node
`graft_nodes`    what nodes that puts into the graph, and their metadata
`cull`           pass: take it out
`fossilize`      pass: make it a plain part of the graph
`split_edge`     pass: one reader of a value reads a node of its own
`verify`         pass: prove what grafts promise
`find_channels`  pass: which channels can only grow together
`widen`          pass: let them grow
`channels`       how these two work
`graft`          a graft: the module of a seed, its steering tensors, its wiring, and what holds it
`sites`          which nodes of a graph belong to a graft
`metadata`       what passes write into ``node.meta``, with types
`_recovering`    grafts found again in a graph that was traced anew
`naming`         names of nodes
`operators`      the operators that a graft puts into a graph
`blends`         the values of blends, and their autograd functions
`_strides`       how the elements of a tensor lie in memory
`objectives`     what an isolated seed learns from
`proofs`         what `verify` proves
`_liveness`      which values of a graph matter
`example_calls`  example inputs, given by the user or made as placeholders say
`observe`        what is known of a node's value from a real run
`_aliases`       values that are the tensor of an earlier node
`_writes`        which nodes wrote into memory that others hold
`untouched`      run modules without leaving a trace
`snapshot`       the state of objects and of all that they hold
`saved`          one object as it was, for each kind of object
`saved_names`    likewise, of what names and containers hold
`_saved_values`  likewise, of what tensors, arrays and generators contain
`bits`           comparison of tensors to the bit
`devices`        what differs between devices
`errors`         the errors that passes raise
`_torch`         private parts of torch that passes use
===============  ==================================================================================
"""

from fxgraft_passes.base import GraphPass
from fxgraft_passes.cull import Cull
from fxgraft_passes.find_channels import FindChannels, channels_of
from fxgraft_passes.find_slots import FindSlots, Slot, rejections_of, slots_of
from fxgraft_passes.fossilize import Fossilize
from fxgraft_passes.germinate import Germinate
from fxgraft_passes.graft import Call, Graft, GraftSpec, Phase
from fxgraft_passes.objectives import Objective
from fxgraft_passes.sites import GraftSite
from fxgraft_passes.split_edge import SplitEdge
from fxgraft_passes.verify import Verify
from fxgraft_passes.widen import Widen

__all__ = [
    "Call",
    "Cull",
    "FindChannels",
    "FindSlots",
    "Fossilize",
    "Germinate",
    "Graft",
    "GraftSite",
    "GraftSpec",
    "GraphPass",
    "Objective",
    "Phase",
    "Slot",
    "SplitEdge",
    "Verify",
    "Widen",
    "channels_of",
    "rejections_of",
    "slots_of",
]
