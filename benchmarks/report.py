"""The results for people: the Markdown page, and the summary in docs/measurements.md."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks import budgets, environment
from benchmarks.record import Part, Record, reasons
from benchmarks.rows import Row, number

FILE = "budgets.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
INTRODUCTION = """\
`python -m benchmarks` (`make bench`) measures what the design limits. Ratios are taken with both sides in
one process and in turns: median, and range over the repeats. What has no range was counted, or measured
once. Figures are those of both sides. One thread of torch."""


def markdown(record: Record, why: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """The whole page."""
    why = reasons() if why is None else why
    parts = ["# Budgets", INTRODUCTION, summary(record), _missed(record.rows, why)]
    for name, part in record.parts.items():
        parts += [f"## {name}", _origin(part), table(part.rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(record: Record) -> str:
    """One line for each budget: the worst row, and how many keep it."""
    lines = ["| what | against | budget | measured, worst of all | met |", "|---|---|---|---|---|"]
    for budget in budgets.ALL:
        rows = [row for row in record.rows if row.budget and row.budget.what == budget.what]
        if rows:
            lines.append(_cells([budget.what, budget.against, budget.text, *_worst(rows)]))
    return "\n".join(lines)


def _worst(rows: list[Row]) -> tuple[str, str]:
    worst = max(rows, key=_excess)
    met = sum(row.is_met for row in rows)
    where = f"{worst.workload}, {worst.mode}"
    return f"{_value(worst)} ({where}: {worst.what})", f"{met} of {len(rows)}"


def _excess(row: Row) -> float:
    assert row.budget is not None
    return row.measured.median - row.budget.limit


def _missed(rows: Iterable[Row], why: Mapping[str, Mapping[str, str]]) -> str:
    """Each reason once, below it the rows that it is about."""
    about: dict[str, list[Row]] = {}
    for row in rows:
        if not row.is_met:
            about.setdefault(reason_of(row, why), []).append(row)
    parts = ["## What is missed, and why"] if about else []
    for reason, missed in about.items():
        parts.append("\n".join(f"- **{row.key}**: {row.verdict}" for row in missed))
        parts.append(reason)
    return "\n\n".join(parts)


def reason_of(row: Row, why: Mapping[str, Mapping[str, str]]) -> str:
    """The text of the first reason whose pattern the row's key matches."""
    for pattern, reason in why.items():
        if fnmatch.fnmatchcase(row.key, pattern):
            return reason["why"] + (f" Tried: {reason['tried']}" if "tried" in reason else "")
    return "Not yet known: see `--profile`."


def _origin(part: Part) -> str:
    return f"`{part.command}`, {part.minutes:.1f} minutes; {environment.as_markdown(dict(part.environment))}"


def table(rows: Iterable[Row]) -> str:
    """A line for each row."""
    lines = ["| workload | mode | what | against | measured | range | figures | budget | |"]
    lines.append("|---" * 9 + "|")
    for row in rows:
        figures = " / ".join(map(number, row.sides)) + f" {row.sides_unit}" if row.sides else ""
        spread = row.measured
        span = f"{number(spread.low)} to {number(spread.high)}" if spread.repeats > 1 else ""
        budget = f"≤ {number(row.budget.limit)}" if row.budget else ""
        cells = [row.workload, row.mode, row.what, row.against, _value(row), span, figures, budget]
        lines.append(_cells([*cells, _mark(row)]))
    notes = {row.mode: row.note for row in rows if row.note}
    return "\n".join([*lines, *(f"\n*{mode}*: {note}." for mode, note in notes.items())])


def _mark(row: Row) -> str:
    return row.verdict if row.is_met else f"**{row.verdict}**"


def _value(row: Row) -> str:
    unit = "" if row.unit == "x" else f" {row.unit}"
    return f"{number(row.measured.median)}{unit}"


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def into_page(text: str, record: Record) -> str:
    """The page with the summary between its two markers. Raises `ValueError` without markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected {BEGIN} and {END} once each")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    return f"{head}{BEGIN}\n\n{summary(record)}\n\n{END}{tail}"


def write(record: Record, folder: Path) -> None:
    """The page, beside the JSON."""
    (folder / FILE).write_text(markdown(record), encoding="utf-8")
