"""All tables that fxgraft prints: headers above aligned columns, as plain text or for rich."""

from __future__ import annotations

import difflib
import re
import shutil
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from numbers import Number
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from rich.table import Table


NARROWEST, ELSEWHERE, GAP = 80, 110, "  "
"""The number of characters that every terminal has in a line, the number taken where there is no terminal (a
file, a notebook), and what stands between two columns."""


def text_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    right: Collection[str] = (),
    width: int | None = None,
) -> str:
    """``headers`` and ``rows`` below each other, as plain text.

    Columns of numbers stand to the right. Text that does not fit is continued on the line below, in the
    widest columns; numbers are never broken, so a table of many numbers can be wider than ``width``.

    Args:
        headers: one for each column.
        rows: cells as of `text_of`; a string is shown as it is.
        right: the headers of columns that stand to the right although they are strings.
        width: the most characters in a line; by default those of the terminal, at least 80, and 110 where
            there is none.
    """
    if width is None:
        width = max(NARROWEST, shutil.get_terminal_size((ELSEWHERE, 24)).columns)
    cells = [[text_of(cell) for cell in row] for row in rows]
    on_the_right = _numeric(headers, rows, right)
    widths = [max(len(header), *(len(row[i]) for row in cells), 0) for i, header in enumerate(headers)]
    _narrow(widths, [len(header) for header in headers], on_the_right, width - len(GAP) * (len(headers) - 1))
    lines = []
    for row in (list(headers), ["-" * wide for wide in widths], *cells):
        folded = [_fold(cell, wide) for cell, wide in zip(row, widths, strict=True)]
        for i in range(max(map(len, folded), default=0)):
            padded = [
                f"{parts[i] if i < len(parts) else '':{'>' if is_number else '<'}{wide}}"
                for parts, wide, is_number in zip(folded, widths, on_the_right, strict=True)
            ]
            lines.append(GAP.join(padded).rstrip())
    return "\n".join(lines)


def rich_table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], right: Collection[str] = (), **options: Any
) -> Table:
    """The same as a ``rich.table.Table``, which shortens names where the terminal is narrow. Needs rich.

    Args:
        headers: one for each column.
        rows: cells as of `text_of`, or what rich shows: a ``rich.text.Text`` keeps its colours. Strings are
            never read as rich's markup, as they can be a user's.
        right: as of `text_table`.
        options: of ``rich.table.Table``, as ``title`` and ``caption``.
    """
    from rich.box import SIMPLE_HEAD  # on demand: an extra
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left", **options)
    for header, is_number in zip(headers, _numeric(headers, rows, right), strict=True):
        table.add_column(
            header, justify="right" if is_number else "left", no_wrap=bool(header), overflow="ellipsis"
        )
    for row in rows:
        table.add_row(*(cell if hasattr(cell, "__rich_console__") else Text(text_of(cell)) for cell in row))
    return table


def text_of(value: object) -> str:
    """A value as it stands in a table: whole numbers with commas, others with four digits; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, Number):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _numeric(headers: Sequence[str], rows: Sequence[Sequence[object]], right: Collection[str]) -> list[bool]:
    """Of each column whether it stands to the right: all that is in it is numbers, or ``right`` says so."""
    return [
        header in right
        or (
            any(_is_number(row[i]) for row in rows)
            and all(row[i] is None or _is_number(row[i]) for row in rows)
        )
        for i, header in enumerate(headers)
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)


def _narrow(widths: list[int], least: Sequence[int], fixed: Sequence[bool], most: int) -> None:
    """Take from the widest columns of text, in place, until the sum is ``most`` or none can be narrower."""
    while sum(widths) > most:
        able = [i for i in range(len(widths)) if not fixed[i] and widths[i] > max(least[i], 1)]
        if not able:
            return
        widths[max(able, key=widths.__getitem__)] -= 1


def _fold(text: str, width: int) -> list[str]:
    """The text in lines of that width, broken behind a space, slash, dot or comma; not inside of a number."""
    lines = [""]
    for piece in re.split(r"(?<=[\s/])|(?<=[.,])(?!\d)", text):
        if len(lines[-1] + piece.rstrip()) > width and lines[-1]:
            lines.append("")
        while len(piece.rstrip()) > width:
            lines[-1], piece = piece[:width], piece[width:]
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines if line.strip()] or [""]


Item = TypeVar("Item")


class TableMapping(Mapping[str, Item]):
    """Name -> item, in the order given. A base class: a subclass has the headers, and the row of an item.

    Args:
        items: all of them, by name; they are copied.
    """

    headers: ClassVar[tuple[str, ...]]

    def __init__(self, items: Mapping[str, Item]):
        self._items = dict(items)

    @abstractmethod
    def _row(self, name: str, item: Item) -> Sequence[object]:
        """The cells of an item, one for each header."""

    def __getitem__(self, name: str) -> Item:
        try:
            return self._items[name]
        except KeyError:
            raise KeyError(f"{name!r}: {self._none_of_them(name)}") from None

    def _none_of_them(self, name: object) -> str:
        near = difflib.get_close_matches(str(name), self._items, n=3, cutoff=0.3) or list(self._items)[:3]
        if not near:
            return "there are none"
        return f"there are {len(self._items)}; did you mean {', '.join(map(repr, near))}?"

    def __contains__(self, name: object) -> bool:
        return name in self._items  # the base class would look for names that are near

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"

    def __str__(self) -> str:
        return text_table(self.headers, [self._row(name, item) for name, item in self.items()])
