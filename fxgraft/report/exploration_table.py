"""An exploration as a table of rich's: the best first, each contribution with a bar. Needs rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from fxgraft.report.exploration_columns import COLUMNS, NUMBERS, bar_lengths, remark
from fxgraft.report.marks import LESS, MORE
from fxgraft.util.tables import rich_table

if TYPE_CHECKING:
    from rich.table import Table

MOST, WIDTH = 20, 12
"""How many rows there is room for, and how many cells the longest bar has."""


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
    headers, columns = list[str](), list[Sequence[Any]]()
    for column in COLUMNS:
        headers.append(column.header)
        columns.append([column.cell(row) for row in shown])
        if column.bar:
            headers.append("")
            columns.append([_bar(length) for length in bar_lengths(column, shown)])
    headers.append("")
    columns.append([Text(remark(row), style="dim") for row in shown])
    return rich_table(
        headers, list(zip(*columns, strict=True)), right=NUMBERS, title=Text(title), caption=caption
    )


def _bar(length: float) -> Text:
    cells = max(round(WIDTH * abs(length)), 1) if length else 0
    return Text("█" * cells, style=MORE if length > 0 else LESS)
