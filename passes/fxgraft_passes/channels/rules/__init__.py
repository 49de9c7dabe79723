"""What operations do to dimensions.

=============  ==============================================
`table`        ``RULES``, and what rules share
`elementwise`  number by number; along one dimension; pools
`shapes`       views, transposes, concatenations, parts
`products`     layers, matrix products, attention, embeddings
`norms`        normalisations
=============  ==============================================
"""

from fxgraft_passes.channels.rules import elementwise, norms, products, shapes
from fxgraft_passes.channels.rules.table import RULES, Unknown

__all__ = ["RULES", "Unknown", "elementwise", "norms", "products", "shapes"]
