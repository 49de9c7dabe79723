"""A run in the terminal, and a log that grows while it is watched."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fxgraft.report import read, screen
from fxgraft.report.reading import ReadError
from fxgraft.report.screen import BLOCKS, Tail, follow, show, sparkline
from tests.report.test_page import EVIL, evil_run
from tests.report.test_reading import BEGAN, line, stage


def console(width: int = 120) -> Console:
    return Console(width=width, record=True, file=io.StringIO(), force_terminal=True)


def test_a_run_is_shown(run_folder: Path) -> None:
    out = console()
    show(run_folder, out)
    text = out.export_text()
    assert "step 60" in text
    assert "seeds: 1 growing, 1 kept, 1 culled" in text
    assert "0 isolation violations" in text
    rows = [row.split() for row in text.splitlines()]
    assert ["kept", "1", "FOSSILIZED", "1.00"] in [row[:4] for row in rows]
    assert ["growing", "2.1", "TRAINING", "0.00"] in [row[:4] for row in rows]
    assert "CULLED" not in [row[2] for row in rows if len(row) > 3]


@pytest.mark.parametrize("width", [30, 80])
def test_it_fits_a_narrow_terminal_and_any_text(width: int) -> None:
    out = console(width)
    out.print(screen.screen(evil_run(EVIL + "[bold]x[/bold][/nothing]")))
    assert max(map(len, out.export_text().splitlines())) <= width


def test_where_there_is_no_log_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="expected a log"):
        show(tmp_path / "nothing", console())


def test_a_log_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert not tail.look(), "not there yet"
    whole = line("run_began", 0, **BEGAN) + "\n"
    path.write_text(whole[:20])
    tail.look()
    assert tail.reader.run.lines == 0, "half a line is not a line"
    path.write_text(whole)
    assert tail.look()
    assert (tail.reader.run.host, tail.reader.run.unreadable) == ("Net", 0)
    assert not tail.look()
    with path.open("a") as more:
        more.write(stage(3, "TRAINING") + "\n")
    assert tail.look()
    assert tail.reader.run.lanes["s"].stage.name == "TRAINING"
    tail.close()


def test_another_file_of_that_name_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line("run_began", 0, **BEGAN) + "\n" + stage(3, "TRAINING") + "\n")
    tail = Tail(path)
    tail.look()
    (tmp_path / "new").write_text(line("run_began", 0, **{**BEGAN, "host": "Other"}) + "\n")
    (tmp_path / "new").replace(path)
    assert tail.look()
    assert (tail.reader.run.host, tail.reader.run.lanes) == ("Other", {})
    path.write_text(line("run_began", 0, **BEGAN)[:30])  # shorter: begun anew
    tail.look()
    assert tail.reader.run.lines == 0
    tail.close()


def test_watching_ends(run_folder: Path, tmp_path: Path) -> None:
    out = console()
    follow(run_folder, 0.0, out, looks=2)
    assert "step 60" in out.export_text()
    out = console()
    follow(tmp_path, 0.0, out, looks=1)
    assert "waiting for" in out.export_text()


def test_following_is_reading(run_folder: Path) -> None:
    tail = Tail(run_folder / "events.jsonl")
    tail.look()
    assert tail.reader.run == read(run_folder)
    tail.close()


@given(st.lists(st.floats(-1e9, 1e9) | st.just(float("nan")), max_size=200), st.integers(1, 60))
def test_a_sparkline_is_one_line(values: list[float], width: int) -> None:
    drawn = sparkline(values, width)
    assert len(drawn) <= width
    assert set(drawn) <= set(BLOCKS)


def test_a_sparkline_falls_with_the_loss() -> None:
    assert sparkline([8.0, 4.0, 2.0, 1.0], 4) == "█▆▃▁"
