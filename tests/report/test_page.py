"""The page: everything is on it, and nothing in a log can become markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxgraft.report import Reader, read
from fxgraft.report._charts import MOST_LANES, MOST_TRIED, chart, with_lane
from fxgraft.report._traces import log_axis
from fxgraft.report.page import page, write
from fxgraft.report.reading import ReadError
from fxgraft.report.run import Run
from tests.report.test_reading import BEGAN, line, stage

EVIL = "</script><img src=x onerror=alert(1)><script>alert(2)</script>\"'`{{77777*3}}&lt;${1}"


class Elements(HTMLParser):
    """Collects tags with attributes, and the text of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def elements(text: str) -> Elements:
    parsed = Elements()
    parsed.feed(text)
    return parsed


def evil_run(text: str = EVIL) -> Run:
    """A run whose every text is ``text``."""
    reader = Reader()
    slots = [{"name": f"a.{text}", "shape": [2], "dtype": text}]
    began = {**BEGAN, "host": text, "time": text, "slots": slots, "versions": {text: text}}
    facts = {"name": text, "slot": f"a.{text}", "source": text, "blueprint": text, "mode": text}
    command = {"type": text, text: text, "nested": {text: [text]}}
    explored = dict.fromkeys(("slot", "blueprint", "status", "reason"), text)
    explored |= dict.fromkeys(("parameters", "contribution", "standard_error", "expected", "score"))
    compiled = {
        "label": text,
        "graphs": 1,
        "artifacts": 0,
        "uncompiled_calls": 0,
        "seconds": 0.1,
        "recompiles": [text],
    }
    for event in (
        line("run_began", 0, **began),
        line("seed_stage", 1, text, **facts, stage="TRAINING", alpha=0.0),
        line("explored", 1, steps=1, rows=[explored]),
        line("seed_stage", 9, text, **facts, stage="HOLDING", alpha=1.0),
        line("contribution", 5, text, contribution=0.5, alpha=1.0),
        line("violation_recorded", 5, text, what=text, name=text, magnitude=1.0),
        line("compiled", 5, **compiled),
        line("command", 5, text, command=command, accepted=False, reason=text),
        line("steps", 10, loss=[1.0] * 10, ms=[1.0] * 9 + [99.0]),
        line(text, 10, text, **{text: text}),
    ):
        reader.feed(event)
    assert reader.run.unreadable == 0
    return reader.run


def test_nothing_in_a_log_becomes_markup() -> None:
    """The same elements with the same attributes as for a harmless text, so none was smuggled in."""
    evil, harmless = elements(page(evil_run(), EVIL)), elements(page(evil_run("harmless"), "harmless"))
    assert evil.tags == harmless.tags
    assert not [tag for tag, _ in evil.tags if tag == "img"]
    assert sum(tag == "script" for tag, _ in evil.tags) == sum(tag == "script" for tag, _ in harmless.tags)
    assert "233331" not in "".join(evil.text), "a template ran what a log held"


def test_the_page_may_load_nothing() -> None:
    found = elements(page(evil_run()))
    (policy,) = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not [a for _, a in found.tags if "src" in a or "href" in a]


def test_everything_is_on_the_page(run_folder: Path) -> None:
    target = write(run_folder)
    assert target == run_folder / "events.html"
    text = "".join(elements(target.read_text()).text)
    for told in ("kept", "culled", "growing", "fossilized", "refused: StageError", "no seed 'nobody' here"):
        assert told in text
    assert "No violation was recorded." in text
    for module in ("2.1", "float32 32 x 8"):
        assert module in text


def test_a_page_goes_where_it_is_told_to(run_folder: Path, tmp_path: Path) -> None:
    target = write(run_folder, tmp_path / "new" / "my.html", "A & B")
    assert target == tmp_path / "new" / "my.html"
    assert "<title>A &amp; B: fxgraft</title>" in target.read_text()
    assert f"<title>{run_folder.name}: fxgraft</title>" in write(run_folder).read_text()


@pytest.mark.parametrize("name", ["events.jsonl", "link", "folder"])
def test_a_page_takes_no_logs_place(run_folder: Path, tmp_path: Path, name: str) -> None:
    log = tmp_path / "events.jsonl"
    log.write_bytes((run_folder / "events.jsonl").read_bytes())
    (tmp_path / "link").symlink_to(log)
    (tmp_path / "folder").mkdir()
    before = log.read_bytes()
    with pytest.raises(ReadError, match="name"):
        write(log, tmp_path / name)
    assert log.read_bytes() == before
    only = (tmp_path / "log.html").absolute()  # where the page of a log of that name would go
    only.write_bytes(before)
    with pytest.raises(ReadError, match="log's own"):
        write(only)


def test_without_anything_there_is_a_page_that_says_so() -> None:
    reader = Reader()
    reader.feed(line("seed_operation", 3, "a", operation="germinate", disabled=True))
    text = "".join(elements(page(reader.run)).text)
    for told in (
        "No losses",
        "Nothing was compiled.",
        "No commands were sent",
        "does not tell the host's slots",
    ):
        assert told in text


def test_many_seeds_have_the_latest_lanes_and_all_rows() -> None:
    reader = Reader()
    for i in range(MOST_LANES + 3):
        reader.feed(stage(i, "TRAINING", seed=f"s{i:03}"))
    drawn = {annotation.text.split("</b>")[0] for annotation in chart(reader.run).layout.annotations}
    assert drawn == {f"<b>s{i:03}" for i in range(3, MOST_LANES + 3)}
    text = page(reader.run)
    assert f"the latest {MOST_LANES} of {MOST_LANES + 3} seeds" in text
    assert text.count("<code>s000</code>") >= 1


def test_what_was_only_tried_does_not_crowd_out_what_was_kept() -> None:
    reader = Reader()
    for text in (stage(1, "TRAINING", seed="kept"), stage(2, "BLENDING", seed="kept")):
        reader.feed(text)
    for name in [f"t{i:03}" for i in range(MOST_LANES + 3)]:
        reader.feed(stage(3, "TRAINING", seed=name))
        reader.feed(stage(4, "CULLED", seed=name))
    drawn = [lane.name for lane in with_lane(reader.run)]
    assert drawn[0] == "kept"
    assert drawn[1:] == [f"t{i:03}" for i in range(MOST_LANES + 3 - MOST_TRIED, MOST_LANES + 3)]


def traces(run: Run) -> dict[str, Any]:
    return {trace.name: trace for trace in chart(run).data if trace.name}


def test_marks_stand_at_their_steps() -> None:
    reader = Reader()
    for event in (
        stage(2, "TRAINING"),
        line("steps", 4, loss=[4.0, 3.0, "nan", 1.0], ms=[None, 1.0, 1.0, 1.0]),
        line("violation_recorded", 4, what="gradient", name="w", magnitude=1.0),
    ):
        reader.feed(event)
    found = traces(reader.run)
    assert list(found["training"].x) == [2]
    assert list(found["training"].y) == [3.0]
    assert list(found["loss NaN or inf"].x) == [3]
    assert list(found["isolation violated"].x) == [4]


def test_a_lane_draws_alpha_in_the_colour_of_its_stage() -> None:
    from fxgraft import Stage
    from fxgraft.seeds.stage import STAGE_COLOURS

    reader = Reader()
    metrics = [line("metrics", s, **{"fxgraft/seed/alpha": {"s": (s - 4) / 4}}) for s in range(5, 8)]
    for event in (stage(1, "TRAINING"), stage(4, "BLENDING"), *metrics, stage(8, "HOLDING", 1.0)):
        reader.feed(event)
    reader.run.step = 10
    lines = [trace for trace in chart(reader.run).data if trace.name == "alpha"]
    assert [trace.line.color for trace in lines] == [
        STAGE_COLOURS[s] for s in (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)
    ]
    assert list(zip(lines[1].x, lines[1].y)) == [(4, 0.0), (5, 0.25), (6, 0.5), (7, 0.75), (8, 1.0), (8, 1.0)]
    assert list(lines[2].x) == [8, 10]


def test_what_is_no_stage_has_none_of_their_colours() -> None:
    from fxgraft.seeds.stage import STAGE_COLOURS

    reader = Reader()
    facts = {"graphs": 1, "artifacts": 0, "uncompiled_calls": 0, "seconds": 0.1, "recompiles": []}
    for event in (
        line("compiled", 2, label="host", **facts),
        line("steps", 2, loss=[1.0, 0.5], ms=[1.0, 2.0]),
    ):
        reader.feed(event)
    assert reader.run.unreadable == 0
    found = {trace.name: trace for trace in chart(reader.run).data}
    assert found["compiled"].marker.color not in STAGE_COLOURS.values()
    assert found["loss"].line.color not in STAGE_COLOURS.values()


def test_numbers_of_the_page_are_json(run_folder: Path) -> None:
    json.dumps(read(run_folder).summary(), allow_nan=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_alpha_and_ratio_may_be_no_numbers(value: float) -> None:
    reader = Reader()
    reader.feed(stage(1, "TRAINING"))
    norms = {f"fxgraft/seed/{whose}": {"s": repr(value)} for whose in ("host_gradient_norm", "gradient_norm")}
    reader.feed(line("metrics", 2, **{"fxgraft/seed/alpha": {"s": repr(value)}, **norms}))
    assert reader.run.unreadable == 0
    page(reader.run)


@given(
    st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=5),
    st.integers(2, 4),
)
def test_a_logarithmic_axis_has_its_values_and_few_ticks(values: list[float], most: int) -> None:
    axis = log_axis(values, most)
    low, high = (10.0**power for power in axis["range"])
    assert low <= min(values) * (1 + 1e-9)
    assert max(values) <= high * (1 + 1e-9)
    assert 2 <= len(axis["tickvals"]) <= most + 1
    assert all(low <= tick * (1 + 1e-9) <= high * (1 + 1e-8) for tick in axis["tickvals"])
    assert [float(text) for text in axis["ticktext"]] == pytest.approx(axis["tickvals"])


def test_a_lane_without_ratios_has_no_axis_of_them() -> None:
    reader = Reader()
    for event in (stage(1, "TRAINING"), line("steps", 4, loss=[1.0], ms=[1.0])):
        reader.feed(event)
    figure = chart(reader.run)
    assert figure.layout.yaxis4.visible is False
