"""What was found of places is seen on them: in the picture of a host, in tables, in a terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from fxgraft.explore import Exploration
from fxgraft.report.exploration_table import exploration_table
from fxgraft.report.marks import LESS, MORE, STRONGEST, marks, shade
from tests.explore.runs import Run


def row(slot: str, contribution: float | None, **more: Any) -> dict[str, Any]:
    plain = dict.fromkeys(("parameters", "flops", "standard_error", "step_cost", "score"))
    return {
        **plain, "slot": slot, "blueprint": "mlp", "contribution": contribution, "status": "measured",
        "reason": "", **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def exploration() -> Exploration:
    return Run(check_every=0).explored("auto", steps=4)


def said(renderable: Any, width: int = 160) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_a_slot_has_the_mark_of_its_best_candidate() -> None:
    better = row("a", 1.0, blueprint="norm")
    rows = [row("a", 0.5), better, row("b", -1.0), row("c", None), row("d", float("nan"))]
    found = marks(rows, "contribution")
    assert found.keys() == {"a", "b"}
    assert found["a"].text == "norm +1"
    assert found["a"].colour != found["b"].colour


@pytest.mark.parametrize(("value", "colour"), [(2.0, MORE), (-2.0, LESS)])
def test_the_largest_has_most_of_the_colour_and_nothing_has_none(value: float, colour: str) -> None:
    def parts(text: str) -> list[int]:
        return [int(text[at : at + 2], 16) for at in (1, 3, 5)]

    wanted = [round(255 + STRONGEST * (part - 255)) for part in parts(colour)]
    assert parts(shade(value, 2.0)) == wanted
    assert shade(0.0, 2.0) == shade(0.0, 0.0) == "#ffffff"


def test_the_picture_of_a_host_has_the_marks(exploration: Exploration) -> None:
    from fxgraft.report._host_graph import Drawing, in_order

    picture = exploration.show()
    host, marked = picture._host, picture._marks
    assert marked.keys() == {row.slot for row in exploration.best(100)}
    dot = Drawing(host, True, marked).of(*in_order(host)).to_string()
    for slot, mark in marked.items():
        boxes = re.findall(r"n\d+ \[[^\]]*\]", dot)
        (line,) = [box for box in boxes if f"\\n{mark.text}" in box and f'"{slot}\\n' in box]
        assert mark.colour in line
    with pytest.raises(ValueError, match="expected one of contribution, expected"):
        exploration.show(by="parameters")


@pytest.mark.graphviz
def test_the_page_says_what_the_colours_are(exploration: Exploration, tmp_path: Path) -> None:
    page = exploration.show(by="expected").save(tmp_path / "explored.html").read_text(encoding="utf-8")
    assert "best candidate&#x27;s expected" in page


def test_the_table_has_a_bar_for_each_contribution() -> None:
    text = said(exploration_table("found", [row("a", 1.0), row("b", -0.5), row("c", None)], most=2))
    first, second = (line for line in text.splitlines() if "mlp" in line)
    assert first.count("█") == 2 * second.count("█") > 0
    assert "1 more" in text


def test_layers_are_named_as_in_print() -> None:
    rows = [
        row("head", 1.0, blueprint="widen", widens=["conv2", 4]),
        row("blocks.1", 0.5, deepens=["blocks", 1]),
    ]
    text = said(exploration_table("found", rows))
    assert "widen(by=4)" in next(line for line in text.splitlines() if "conv2" in line)
    assert "behind blocks.1" in text


def test_the_table_is_live_while_candidates_learn() -> None:
    run = Run(check_every=0)
    exploration = run.manager.explore("relu", evaluate=run.evaluate, steps=4)
    console = Console(width=160, force_terminal=True)
    with console.capture() as capture, Live(exploration, console=console, auto_refresh=False) as live:
        for _ in range(4):
            run.train(1)
            live.refresh()
    text = capture.get()
    assert "step 2 of 4" in text
    assert "learning" in text
    assert f"{len(exploration.best(100))} measured" in text
