"""The strategies that fxgraft.testing publishes, by the name that the tests know them by."""

from fxgraft.testing.hosts import (
    BATCH,
    CALLS,
    OPERATIONS,
    TOKENS,
    WIDTH,
    Child,
    Net,
    Pair,
    Plan,
    RandomBlock,
    RandomOperation,
    lifecycle_calls,
    plans,
)

__all__ = [
    "BATCH",
    "CALLS",
    "OPERATIONS",
    "TOKENS",
    "WIDTH",
    "RandomBlock",
    "Child",
    "Net",
    "RandomOperation",
    "Pair",
    "Plan",
    "lifecycle_calls",
    "plans",
]
