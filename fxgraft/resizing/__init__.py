"""The host's own layers, changed while they train: more blocks, more channels, fossils fused into layers.

===================  =====================================================================
`spread`             behind which blocks new ones stand
`new_blocks`         a new block, made and tried
`block_copies`       a block's copy, with tensors of its own
`_fresh_blocks`      a copy initialised anew, as the model does
`_zeroing`           which layers to zero so that a block changes nothing, on its graph
`_zeroing_in_a_run`  the same for code without a graph, on what it did in the example call
`_zero_operations`   what is zero where its input is, and what is a sum or a product
`_no_output_layers`  why there are no such layers
`widening`           one growth of one group of channels, as a transaction
`_other_calls`       calls in which traced code takes another way, for comparing
`group_names`        which group of channels somebody means
`planned`            a growth that is to come, as a part of a change
`_moments`           what optimizers keep for parameters that grow
`replay`             the growths of a host in a checkpoint
`_fusing`            fossils that become part of the host's own layers
`_alike`             whether a branch is of the form of what it stands beside (needs networkx)
`_same_settings`     whether two modules differ in sizes only
`_joining`           its channels, behind those of the layers there
`_joined_state`      what optimizers keep for it
`_not_alike`         why a branch cannot be joined
===================  =====================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""

from fxgraft.resizing._fusing import PlannedFusion
from fxgraft.resizing.widening import Widening, widen

__all__ = ["PlannedFusion", "Widening", "widen"]
