"""What a host remembers of a growth of its channels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Widened:
    """One growth of one group.

    Attributes:
        group: its name.
        by: how many channels more.
        init: how they began.
        numbers: module, attribute, value: what norms were given, that no shape tells.
        seeds: what had grown in the host by then.
    """

    group: str
    by: int
    init: str
    numbers: tuple[tuple[str, str, float], ...] = ()
    seeds: tuple[str, ...] = ()
