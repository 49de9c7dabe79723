"""The strategies that fxgraft.testing publishes, by the name that the tests know them by."""

from fxgraft.testing.hosts import (
    BATCH,
    CALLS,
    OPERATIONS,
    TOKENS,
    WIDTH,
    Block,
    Child,
    Net,
    Operation,
    Pair,
    Plan,
    lifecycle_calls,
    plans,
)

__all__ = [
    "BATCH",
    "CALLS",
    "OPERATIONS",
    "TOKENS",
    "WIDTH",
    "Block",
    "Child",
    "Net",
    "Operation",
    "Pair",
    "Plan",
    "lifecycle_calls",
    "plans",
]
