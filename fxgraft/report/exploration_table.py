"""An exploration as a table of rich's: the best first, each contribution with a bar. Needs rich."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from fxgraft.report.marks import LESS, MORE
from fxgraft.util.tables import rich_table

if TYPE_CHECKING:
    from rich.table import Table

MOST, WIDTH = 20, 12
"""How many rows there is room for, and how many cells the longest bar has."""

NUMBERS = ("parameters", "contribution", "expected", "score")


def exploration_table(title: str, rows: Sequence[Mapping[str, Any]], most: int = MOST) -> Table:
    """The first ``most`` of these rows, which are those of an exploration as dictionaries.

    Args:
        title: stands above.
        rows: as of ``row.to_dict()``.
        most: how many are shown; the caption says how many more there are.
    """
    shown = rows[:most]
    hidden = len(rows) - len(shown)
    caption = f"... and {hidden} more" if hidden else None
    largest = max((abs(_value(row)) for row in shown), default=0.0)
    headers = ("slot", "blueprint", "parameters", "contribution", "", "expected", "score", "")
    cells = [_cells(row, largest) for row in shown]
    return rich_table(headers, cells, right=NUMBERS, title=Text(title), caption=caption)


def _cells(row: Mapping[str, Any], largest: float) -> tuple[Any, ...]:
    """One row; ``largest`` is the contribution that has the longest bar."""
    said = "" if row["status"] == "measured" else f"{row['status']}: {row['reason']}".rstrip(": ")
    parameters, contribution, expected, score = (_number(row[name]) for name in NUMBERS)
    bar = _bar(_value(row), largest)
    return (
        *_place(row), parameters, contribution, bar, expected, score, Text(said, style="dim")
    )  # fmt: skip


def _place(row: Mapping[str, Any]) -> tuple[str, str]:
    """Where it would grow, and what: of layers the channels or the block, as ``print(exploration)`` says."""
    if row.get("widens"):
        group, by = row["widens"]
        return str(group), f"widen(by={by})"
    return f"behind {row['slot']}" if row.get("deepens") else str(row["slot"]), str(row["blueprint"])


def _value(row: Mapping[str, Any]) -> float:
    found = row["contribution"]
    return float(found) if found is not None and math.isfinite(found) else 0.0


def _bar(value: float, largest: float) -> Text:
    length = round(WIDTH * abs(value) / largest) if largest else 0
    return Text("█" * max(length, 1 if value else 0), style=MORE if value > 0 else LESS)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1e4 else f"{value:.3g}"
