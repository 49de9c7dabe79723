"""Colours for the slots of a picture: each shows a number of its best candidate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fxgraft.seeds.stage import STAGE_COLOURS, Stage

MORE, LESS = STAGE_COLOURS[Stage.FOSSILIZED], STAGE_COLOURS[Stage.CULLED]
STRONGEST = 0.7
"""How much of the colour the largest number gets, the rest is white: black text stands on it."""


@dataclass(frozen=True)
class Mark:
    """What stands at a slot.

    Attributes:
        colour: fills the box.
        text: a line below the slot's name.
    """

    colour: str
    text: str


def marks(rows: Iterable[Mapping[str, Any]], by: str) -> dict[str, Mark]:
    """A mark for each slot with a candidate that has a number.

    Args:
        rows: those of an exploration, as dictionaries.
        by: which of their numbers: the best candidate of a slot is the one with the highest.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        value = row[by]
        if value is None or not math.isfinite(value):
            continue
        if row["slot"] not in best or value > best[row["slot"]][by]:
            best[row["slot"]] = row
    most = max((abs(row[by]) for row in best.values()), default=0.0)
    return {
        slot: Mark(shade(row[by], most), f"{row['blueprint']} {row[by]:+.3g}") for slot, row in best.items()
    }


def shade(value: float, most: float) -> str:
    """Green where it is positive, red where negative, the paler the smaller it is against ``most``."""
    colour = MORE if value > 0 else LESS
    share = STRONGEST * abs(value) / most if most else 0.0
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + share * (part - 255)):02x}" for part in parts)
