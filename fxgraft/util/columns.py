"""Tables as plain text: a line of headers, and columns that are aligned."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number


def columns(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """``headers`` and ``rows`` below each other; columns of numbers stand to the right.

    A cell that is None is empty; a string is shown as it is.
    """
    cells = [[text_of(cell) for cell in row] for row in rows]
    is_number = [
        any(_counts(row[i]) for row in rows) and all(row[i] is None or _counts(row[i]) for row in rows)
        for i in range(len(headers))
    ]
    widths = [max(len(header), *(len(row[i]) for row in cells), 0) for i, header in enumerate(headers)]
    lines = []
    for line in (list(headers), ["-" * width for width in widths], *cells):
        padded = [
            f"{cell:>{width}}" if right else f"{cell:{width}}"
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def text_of(value: object) -> str:
    """A value as it stands in a table: whole numbers with commas, others with four digits; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, Number):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _counts(value: object) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)
