"""What operations do to dimensions: the table, filled with the rules of all kinds of operations."""

from fxgraft_passes.channels import _rules_elementwise, _rules_norms, _rules_products, _rules_shapes
from fxgraft_passes.channels._rules_table import RULES, Unknown

__all__ = ["RULES", "Unknown", "_rules_elementwise", "_rules_norms", "_rules_products", "_rules_shapes"]
