"""Text for messages."""

from __future__ import annotations

from collections.abc import Iterable

MOST = 5
"""How many things a message lists."""


def listed(things: Iterable[object], separator: str = "; ") -> str:
    """The first things, and ``…`` where there are more."""
    texts = list(map(str, things))
    return separator.join([*texts[:MOST], *(["…"] if len(texts) > MOST else [])])


def pluralize(number: int, what: str) -> str:
    """``1 slot``, ``2 slots``."""
    return f"{number} {what}{'' if number == 1 else 's'}"
