"""The columns of an exploration: the same in ``print``, live in a terminal, and in a report.

A row is a dictionary here, as ``row.to_dict()`` and the event ``explored`` have it. So JSON has all that the
columns show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Fields = Mapping[str, Any]
"""The fields of a row."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        header: stands above.
        cell: makes the text for a row.
        numbers: the fields with the numbers that it shows; empty for text.
        bar: whether a bar beside it shows the first of these, where there is room for one.
    """

    header: str
    cell: Callable[[Fields], str]
    numbers: tuple[str, ...] = ()
    bar: bool = False


def _where(row: Fields) -> str:
    """Where it would grow."""
    if row.get("widens"):
        return str(row["widens"][0])
    if row.get("deepens"):
        return f"behind {row['slot']}"
    source = (row.get("command") or {}).get("source")
    return str(row["slot"]) if source is None else f"{source} -> {row['slot']}"


def _what(row: Fields) -> str:
    """What would grow, with its options."""
    if row.get("widens"):
        return f"widen(by={row['widens'][1]})"
    config = {} if row.get("deepens") else (row.get("command") or {}).get("config") or {}
    options = ", ".join(f"{name}={value}" for name, value in config.items())
    return f"{row['blueprint']}({options})" if options else str(row["blueprint"])


def _whole(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def _three_digits(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}"


def _shortened(count: float | None) -> str:
    """A large number in at most six characters: ``1.23M``."""
    if count is None or not 10_000 <= count < math.inf:
        return "" if count is None else f"{count:.0f}"
    rounded = round(float(f"{count:.3g}"))
    power = min((len(str(rounded)) - 1) // 3, 6)
    return f"{rounded / 1000**power:g}{' kMGTPE'[power]}"


def _contribution(row: Fields) -> str:
    text, error = _three_digits(row["contribution"]), row["standard_error"]
    return text if error is None else f"{text} ± {error:.1g}"


COLUMNS = (
    Column("slot", _where),
    Column("blueprint", _what),
    Column("parameters", lambda row: _whole(row["parameters"]), ("parameters",)),
    Column("FLOPs", lambda row: _shortened(row["flops"]), ("flops",)),
    Column("contribution", _contribution, ("contribution", "standard_error"), bar=True),
    Column("step ms", lambda row: _three_digits(row["step_cost"]), ("step_cost",)),
    Column("score", lambda row: _three_digits(row["score"]), ("score",)),
)
"""Of each row, from left to right."""

HEADERS = tuple(column.header for column in COLUMNS)
NUMBERS = tuple(column.header for column in COLUMNS if column.numbers)
FIELDS = tuple(name for column in COLUMNS for name in column.numbers)
"""The headers of the columns of numbers, and the fields in which these are."""

TEXTS = ("slot", "blueprint", "status", "reason")
"""Fields with text that every row has."""


def place_of(row: Fields) -> str:
    """Where it would grow, and what: the columns with text."""
    return " ".join(column.cell(row) for column in COLUMNS if not column.numbers)


def remark(row: Fields) -> str:
    """What became of a row that was not measured; empty for one that was."""
    if row["status"] == "measured":
        return ""
    return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])


def bar_lengths(column: Column, rows: Sequence[Fields]) -> list[float]:
    """How long the bar of each row is, from -1 to 1: 1 is that of the largest number, 0 is none."""
    numbers = [row[column.numbers[0]] for row in rows]
    finite = [float(one) if one is not None and math.isfinite(one) else 0.0 for one in numbers]
    largest = max(map(abs, finite), default=0.0)
    return [one / largest if largest else 0.0 for one in finite]
