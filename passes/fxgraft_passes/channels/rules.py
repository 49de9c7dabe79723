"""What operations do to dimensions: the table, filled with the rules of all kinds of operations."""

from fxgraft_passes.channels import rules_elementwise, rules_norms, rules_products, rules_shapes
from fxgraft_passes.channels.rules_table import RULES, Unknown

__all__ = ["RULES", "Unknown", "rules_elementwise", "rules_norms", "rules_products", "rules_shapes"]
