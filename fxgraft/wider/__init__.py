"""A host that grows wider: more channels in its own layers, while it trains.

========  ===========================================================
widening  one growth of one group, as a transaction
moments   what optimizers keep for parameters that grow
replay    the growths of a host in a checkpoint
========  ===========================================================
"""

from fxgraft.wider.widening import Widening, widen

__all__ = ["Widening", "widen"]
