"""The host's own layers, changed while they train: more blocks, more channels, fossils fused into layers.

===================  ===================================================================================
`arguments`          what arguments name: the blocks that new ones stand behind, and a group of channels
`new_blocks`         a new block, made and tried
`_set_from_outside`  attributes of a block that the model sets in each call, and not in a copy
`dropped_outputs`    what a block returns beside the value that goes on, which nobody reads of a copy
`block_copies`       a block's copy with tensors of its own, the same or initialised anew
`_zeroing_by_graph`  which layers to zero so that a block changes nothing, on its graph
`_zeroing_by_run`    the same for code without a graph, on what it did in the example call
`_zero_operations`   what is zero where its input is, and what is a sum or a product
`widening`           one growth of one group of channels, as a transaction
`_other_calls`       calls in which traced code takes another way, for comparing
`planned_widening`   a growth that is to come, as a part of a change
`_moments`           what optimizers keep for parameters that grow
`replay`             the growths of a host in a checkpoint
`narrowing`          a host goes back to fewer channels
`_fusing`            fossils that become part of the host's own layers
`_same_structure`    whether a branch has the structure of the layers parallel to it (needs networkx)
`_activations`       activations, whether they are modules or functions
`_same_settings`     whether two modules differ in sizes only
`_joining`           joins a branch: its channels behind those of the layers there
`_joined_state`      what optimizers keep for the parameters of a joined branch
===================  ===================================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""

from fxgraft.resizing._fusing import PlannedFusion
from fxgraft.resizing.widening import Widening, widen

__all__ = ["PlannedFusion", "Widening", "widen"]
