"""A host that grows wider: more channels in its own layers, while it trains.

==========  =====================================================================
widening    one growth of one group, as a transaction
replacing   wider tensors in the place of those that there are, optimizers included
comparing   the function is kept: proved on the example, before anything changes
==========  =====================================================================
"""

from fxgraft.wider.widening import Widening, widen

__all__ = ["Widening", "widen"]
