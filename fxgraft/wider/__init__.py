"""A host that grows wider: more channels in its own layers, while it trains.

===========  =========================================================================
`widening`   one growth of one group, as a transaction
`planned`    a growth that is to come, as a part of a change
`moments`    what optimizers keep for parameters that grow
`fusing`     fossils that become part of the host's own layers
`alike`      whether a branch is of the form of what it stands beside (needs networkx)
`joining`    its channels, behind those of the layers there
`replay`     the growths of a host in a checkpoint
`not_alike`  why a branch cannot be joined
===========  =========================================================================
"""

from fxgraft.wider.fusing import fuse
from fxgraft.wider.widening import Widening, widen

__all__ = ["Widening", "fuse", "widen"]
