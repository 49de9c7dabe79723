"""An exploration as a table of rich's: the best first, each contribution with a bar. Needs rich."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fxgraft.report.marks import LESS, MORE

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
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=Text(title), title_justify="left", caption=caption)
    table.add_column("slot", overflow="ellipsis", no_wrap=True)
    table.add_column("blueprint", no_wrap=True)
    for name in NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
        if name == "contribution":
            table.add_column("", no_wrap=True)  # its bar
    table.add_column("", overflow="fold")
    largest = max((abs(_value(row)) for row in shown), default=0.0)
    for row in shown:
        cells = [Text(row["slot"]), Text(row["blueprint"])]  # never as markup: they are a user's
        for name in NUMBERS:
            cells.append(Text(_number(row[name])))
            if name == "contribution":
                cells.append(_bar(_value(row), largest))
        said = "" if row["status"] == "measured" else f"{row['status']}: {row['reason']}".rstrip(": ")
        table.add_row(*cells, Text(said, style="dim"))
    return table


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
