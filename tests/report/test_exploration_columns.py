"""An exploration has the same columns wherever it is shown: text, a live table, a report, JSON."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fxgraft.commands import SEED
from fxgraft.explore import Exploration
from fxgraft.report import read
from fxgraft.report.exploration_columns import COLUMNS
from fxgraft.report.page import page
from fxgraft.report.screen import screen
from fxgraft.telemetry import JsonLines
from tests.explore import runs
from tests.explore.runs import Run
from tests.explore.test_price import Stack

HEADERS = ["slot", "blueprint", "parameters", "FLOPs", "contribution", "step ms", "score"]
"""The contract: where, what, how large, what it gives and costs; and by what it is ranked."""

CANDIDATES = [
    SEED(slot="head", blueprint="mlp", config={"hidden": 3}),
    SEED(slot="head", blueprint="low_rank", source="blocks.0", config={"rank": 2}),
    SEED(slot="blocks.0", blueprint="deepen", config={"stack": "blocks", "at": 0}),
    SEED(slot="head", blueprint="norm"),
]


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exploration, Path]:
    log = tmp_path_factory.mktemp("explored") / "events.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "NormNet", Stack)
        run = Run(check_every=0, sinks=[JsonLines(log)])
    return run.explored(CANDIDATES, steps=4, cap={"candidates": 3}), log


def of_text(text: str) -> list[list[str]]:
    """The cells of a table, the headers first."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if set(line) == {"-", " "})
    spans = [found.span() for found in re.finditer("-+", lines[at])]
    return [[line[a:b].strip() for a, b in spans] for line in (lines[at - 1], *lines[at + 1 :])]


def of_rich(renderable: Any) -> list[list[str]]:
    """The cells of the table that has a slot, without those below empty headers."""
    console = Console(width=250, file=io.StringIO())
    lines = console.render_lines(renderable)
    text = ["".join(segment.text for segment in line) for line in lines]
    (head,) = [line for line in text if line.lstrip().startswith("slot ") and "score" in line]
    rows = [head, *text[text.index(head) + 2 :]]
    cells = [re.split(r"\s{2,}", re.sub("█+", "", line).strip()) for line in rows]
    return [row for row in cells if len(row) > 1]


class Cells(HTMLParser):
    """The cells of the table of an exploration."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._inside = ("class", "exploration") in attrs
        elif self._inside and tag == "tr":
            self.rows.append([])
        elif self._inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "table"

    def handle_data(self, data: str) -> None:
        if self._inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def measured(exploration: Exploration) -> list[list[str]]:
    """What each place has to show of the measured rows, by hand."""
    made = []
    for row in exploration.best(9):
        where = {"mlp": "head", "low_rank": "blocks.0 -> head", "deepen": "behind blocks.0"}[row.blueprint]
        options = {"mlp": "mlp(hidden=3)", "low_rank": "low_rank(rank=2)", "deepen": "deepen"}
        step = "" if row.step_cost is None else f"{row.step_cost:.3g}"
        made.append(
            [where, options[row.blueprint], str(row.parameters), "" if row.flops is None else str(row.flops),
             f"{row.contribution:.3g} ± {row.standard_error:.1g}", step, f"{row.score:.3g}"]
        )  # fmt: skip
    return made


def filled(rows: list[list[str]]) -> list[list[str]]:
    return [[cell for cell in row if cell] for row in rows]


def test_text_has_the_columns(explored: tuple[Exploration, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    exploration, _ = explored
    assert len(measured(exploration)) == 3
    headers, *rows = of_text(str(exploration))
    assert headers == HEADERS
    assert rows[:3] == measured(exploration)
    assert "head norm: left out: the cap of 3 candidates" in str(exploration)


def test_a_live_table_and_the_screen_of_a_log_have_them(explored: tuple[Exploration, Path]) -> None:
    exploration, log = explored
    for shown in (exploration, screen(read(log))):
        headers, *rows = of_rich(shown)
        assert headers == HEADERS
        assert filled(rows)[:3] == filled(measured(exploration))
        assert [*rows[3][:2], rows[3][-1]] == ["head", "norm", "left out: the cap of 3 candidates"]


def test_a_report_has_them(explored: tuple[Exploration, Path]) -> None:
    exploration, log = explored
    headers, *rows = Cells(page(read(log))).rows
    at = [headers.index(name) for name in HEADERS]
    assert [name for name in headers if name] == HEADERS
    assert [[row[i] for i in at] for row in rows[:3]] == measured(exploration)
    assert rows[3][-1] == "left out: the cap of 3 candidates"


def test_json_has_what_they_show(explored: tuple[Exploration, Path]) -> None:
    exploration, _ = explored
    rows = json.loads(json.dumps(exploration.to_dict()))["rows"]
    assert [[column.cell(row) for column in COLUMNS] for row in rows[:3]] == measured(exploration)
    assert [column.header for column in COLUMNS] == HEADERS


def test_a_log_from_before_a_column_was_there_is_shown(explored: tuple[Exploration, Path]) -> None:
    _, log = explored
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for row in next(one["data"]["rows"] for one in lines if one["kind"] == "explored"):
        for name in ("flops", "step_cost", "command"):
            del row[name]
        row["score"], row["parameters"] = "nan", "inf"
    old = log.with_name("old.jsonl")
    old.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    run = read(old)
    assert run.unreadable == 0
    assert "behind blocks.0" in page(run)
    assert [row[0] for row in of_rich(screen(run))[1:4]].count("head") >= 1
