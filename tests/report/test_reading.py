"""A log is read whatever it holds; what is right in it is all there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxgraft import Stage
from fxgraft.report import Reader, read
from fxgraft.report._points import smooth, thin
from fxgraft.report._tree import structure
from fxgraft.report.page import page, write
from fxgraft.report.reading import ReadError
from fxgraft.report.run import Run

BEGAN = {
    "time": "2026-01-01T00:00:00+00:00", "host": "Net", "parameters": 10, "seeds": [],
    "slots": [{"name": "a.relu", "shape": [2, 3], "dtype": "float32"}], "versions": {"torch": "2.13"},
}  # fmt: skip
BORN = {
    "name": "s",
    "slot": "a.relu",
    "source": None,
    "blueprint": "mlp",
    "mode": "residual",
    "parameters": 4,
}


def line(kind: str, step: int, seed: str | None = None, **data: Any) -> str:
    return json.dumps({"kind": kind, "step": step, "seed": seed, "data": data})


def stage(step: int, name: str, alpha: float = 0.0, seed: str = "s") -> str:
    return line("seed_stage", step, seed, **{**BORN, "name": seed}, stage=name, alpha=alpha)


def fed(*lines: str) -> Run:
    reader = Reader()
    for text in lines:
        reader.feed(text)
    return reader.run


def test_a_real_run_is_read(run_folder: Path) -> None:
    run = read(run_folder)
    assert (run.unreadable, run.step, len(run.losses), len(run.times)) == (0, 60, 60, 59)
    assert [step for step, _ in run.losses] == list(range(1, 61))
    assert {name: lane.stage.name for name, lane in run.lanes.items()} == {
        "kept": "FOSSILIZED", "culled": "CULLED", "growing": "TRAINING",
    }  # fmt: skip
    kept = run.lanes["kept"]
    assert [(step, s.name) for step, s in kept.stages] == [
        (5, "TRAINING"), (20, "BLENDING"), (30, "HOLDING"), (40, "FOSSILIZED"),
    ]  # fmt: skip
    assert (kept.slot, kept.blueprint, kept.mode, kept.alpha) == ("1", "mlp", "residual", 1.0)
    assert kept.parameters is not None
    assert kept.ratio is not None
    assert kept.contribution is not None
    assert [command["accepted"] for command in run.commands] == [True, True, True, True, False, True, True]
    summary = run.summary()
    assert (summary["kept"], summary["culled"], summary["live"], summary["refused"]) == (1, 1, 1, 1)
    assert summary["graphs"] > 1
    assert summary["last_loss"] == run.losses[-1][1]


def test_the_folder_and_the_file_are_the_same_run(run_folder: Path) -> None:
    assert read(run_folder) == read(run_folder / "events.jsonl")


@pytest.mark.parametrize("content", [None, "", "hello\nworld\n", "[1]\n"])
def test_what_is_no_log_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ReadError, match=r"x\.jsonl: expected"):
        read(tmp_path / "x.jsonl")


def test_a_log_torn_anywhere_is_read_up_to_there(run_folder: Path, tmp_path: Path) -> None:
    whole = (run_folder / "events.jsonl").read_bytes()
    for cut in range(len(whole) // 2, len(whole), 997):
        (tmp_path / "x.jsonl").write_bytes(whole[:cut])
        run = read(tmp_path / "x.jsonl")
        assert run.lines - run.unreadable == whole[:cut].count(b"\n") + (whole[cut : cut + 1] == b"\n")
        page(run)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(
    ["run_began", "seed_stage", "steps", "metrics", "contribution", "compiled", "command"]
)
FIELDS = sorted({*BEGAN, *BORN, "stage", "alpha", "loss", "ms", "label", "graphs", "accepted", "command"})


@st.composite
def odd_events(draw: st.DrawFn) -> str:
    data = draw(st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from([BORN, "TRAINING", [BORN]])))
    event = {
        "kind": draw(KINDS),
        "step": draw(st.integers(0, 9) | JSON),
        "seed": draw(st.none() | st.text(max_size=3)),
    }
    return json.dumps({**event, "data": data if draw(st.booleans()) else draw(JSON)})


@given(st.lists(odd_events() | st.text(max_size=20) | st.just(stage(3, "TRAINING")), max_size=12))
def test_no_line_breaks_the_reader_or_the_page(lines: list[str]) -> None:
    run = fed(line("run_began", 0, **BEGAN), *lines)
    run.summary()
    run.stalls()
    structure(run)
    for lane in run.lanes.values():
        lane.spans(run.step)


@pytest.mark.parametrize("nesting", ["[" * 100_000, '{"a":' * 100_000])
def test_deep_nesting_is_an_unreadable_line(nesting: str) -> None:
    assert fed(nesting).unreadable == 1


def test_a_run_that_went_back_goes_on_from_there() -> None:
    run = fed(
        line("run_began", 0, **BEGAN),
        stage(2, "TRAINING"),
        line("steps", 10, loss=[float(i) for i in range(10)], ms=[1.0] * 10),
        stage(6, "BLENDING", seed="late"),
        line("run_began", 4, **{**BEGAN, "seeds": [{**BORN, "stage": "TRAINING", "alpha": 0.0}]}),
        line("steps", 6, loss=[50.0, 60.0], ms=[None, 1.0]),
    )
    assert run.losses == [(1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0), (5, 50.0), (6, 60.0)]
    assert run.resumed == [(4, 10)]
    assert list(run.lanes) == ["s"], "a seed of the way not taken"
    assert run.lanes["s"].stages == [(2, Stage.TRAINING)], "known already: not told twice"
    assert run.step == 6


def test_of_several_runs_in_one_log_the_last_is_shown() -> None:
    first = [
        line("run_began", 0, **BEGAN),
        stage(2, "TRAINING"),
        line("steps", 9, loss=[1.0] * 9, ms=[1.0] * 9),
    ]
    run = fed(*first, line("run_began", 0, **BEGAN), line("steps", 2, loss=[5.0, 4.0], ms=[None, 1.0]))
    assert run.losses == [(1, 5.0), (2, 4.0)]
    assert (run.step, run.lanes, run.resumed, run.earlier, run.lines) == (2, {}, [], 1, 5)
    assert "The log has 1 earlier run, which this page leaves out." in page(run)


def test_a_log_that_begins_with_seeds_has_their_lanes() -> None:
    seeds = [{**BORN, "stage": "HOLDING", "alpha": 0.5}]
    run = fed(line("run_began", 7, **{**BEGAN, "seeds": seeds}))
    assert run.lanes["s"].stages == [(7, Stage.HOLDING)]
    assert run.lanes["s"].alpha == 0.5
    assert run.resumed == []


def test_a_name_that_comes_again_has_one_lane_with_a_gap() -> None:
    run = fed(stage(1, "TRAINING"), stage(3, "CULLED"), stage(8, "TRAINING"))
    assert run.lanes["s"].spans(10) == [(1, 3, Stage.TRAINING), (8, 10, Stage.TRAINING)]


def test_losses_that_are_no_numbers_are_kept_apart() -> None:
    run = fed(line("steps", 3, loss=[1.0, "nan", "inf"], ms=[None, 1.0, 1.0]))
    assert [math.isfinite(value) for _, value in run.losses] == [True, False, False]
    assert run.summary()["last_loss"] is None
    assert run.summary()["lowest_loss"] == 1.0


def test_stalls_name_what_happened() -> None:
    times = [1.0] * 19 + [50.0]
    run = fed(
        stage(19, "TRAINING"), stage(2, "TRAINING", seed="b"), line("steps", 20, loss=[None] * 20, ms=times)
    )
    ((step, ms, events),) = run.stalls()
    assert (step, ms, [entry.seed for entry in events]) == (20, 50.0, ["s"])


def test_the_tree_has_modules_slots_and_seeds() -> None:
    slots = [{"name": name, "shape": [1], "dtype": "float32"} for name in ("a.b.relu", "a.conv", "top")]
    run = fed(
        line("run_began", 0, **{**BEGAN, "slots": slots}),
        line("seed_stage", 1, "z", **{**BORN, "slot": "a.conv"}, stage="TRAINING", alpha=0.0),
        line("seed_stage", 1, "y", **{**BORN, "slot": "a.conv"}, stage="TRAINING", alpha=0.0),
        line("seed_stage", 1, "e", **{**BORN, "slot": "a.conv->a.b.relu"}, stage="TRAINING", alpha=0.0),
        line("seed_stage", 1, "gone", **{**BORN, "slot": "top"}, stage="CULLED", alpha=0.0),
    )
    root = structure(run)
    assert (root.slots, root.seeds) == (4, 3)
    inner = root.inside["a"]
    assert [(place.name, [s.name for s in place.seeds]) for place in inner.places] == [("a.conv", ["y", "z"])]
    assert [place.name for place in inner.inside["b"].places] == ["a.b.relu", "a.conv->a.b.relu"]


def test_a_long_run_is_thinned_and_keeps_its_spikes() -> None:
    """100,000 events: the page stays small, and the one bad step is on it."""
    reader = Reader()
    reader.feed(line("run_began", 0, **BEGAN))
    reader.feed(stage(1, "TRAINING"))
    for step in range(1, 100_001):
        spike = 1e3 if step == 77_777 else 1.0
        reader.feed(line("steps", step, loss=[spike + step % 2 / 10], ms=[spike]))
        if step % 10 == 0:
            reader.feed(line("metrics", step, **{"fxgraft/seed/alpha": {"s": step / 1e5}}))
    run = reader.run
    assert len(run.losses) == 100_000
    drawn = thin(run.losses, 4000)
    assert len(drawn) <= 4100
    assert max(value for _, value in drawn) > 1e3
    assert len(page(run)) - len(page(fed(line("run_began", 0, **BEGAN)))) < 500_000


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 50))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float], most: int) -> None:
    points = list(enumerate(values))
    kept = thin(points, most)
    assert kept == sorted(set(kept) & set(points))
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert {max(values), min(values)} <= {value for _, value in kept}
    assert len(kept) <= most + 5


def test_the_average_of_a_constant_is_the_constant() -> None:
    assert [value for _, value in smooth([(i, 3.0) for i in range(50)])] == pytest.approx([3.0] * 50)


def test_an_exploration_is_read() -> None:
    row = {
        "slot": "a", "blueprint": "mlp", "status": "measured", "reason": "", "parameters": 12,
        "contribution": 0.5, "standard_error": None, "expected": 0.25, "score": "nan",
    }  # fmt: skip
    reader = Reader()
    reader.feed(line("run_began", 0, **BEGAN))
    reader.feed(line("explored", 7, steps=5, rows=[row]))
    ((step, (found,)),) = reader.run.explorations
    assert step == 7
    assert (found["slot"], found["parameters"], found["standard_error"]) == ("a", 12.0, None)
    assert reader.run.log[-1].text == "1 candidates in 5 steps"
    reader.feed(line("explored", 8, steps=5, rows=[{}]))
    assert reader.run.unreadable == 1
    reader.feed(line("explored", 9, steps=5, rows=[{**row, "blueprint": "widen", "widens": ["up", 4]}]))
    assert "Exploration until step 7" in page(reader.run)
    assert "<code>up</code>" in page(reader.run)
    assert "widen(by=4)" in page(reader.run)


def test_the_size_in_the_end_and_the_held_out_loss_are_reported(run_folder: Path) -> None:
    """The seed at the first slot has 8 features and was kept; it was blended when it was measured."""
    run = read(run_folder)
    summary = run.summary()
    kept = run.lanes["kept"]
    assert summary["final_parameters"] == run.parameters + kept.parameters
    ((step, loss),) = run.held_out
    assert step == 35
    assert loss == summary["held_out_loss"]
    assert loss != run.losses[34][1]
    run.cut(34)
    assert run.summary()["held_out_loss"] is None


def test_an_older_log_tells_neither() -> None:
    measured = line("contribution", 2, "s", contribution=0.5, alpha=1.0)
    steps = line("steps", 2, loss=[1.0], ms=[None])
    run = fed(line("run_began", 0, **BEGAN), stage(1, "TRAINING"), measured, steps)
    assert run.unreadable == 0
    assert len(run.losses) == len(run.lanes["s"].contributions) == 1
    assert (run.summary()["final_parameters"], run.summary()["held_out_loss"]) == (None, None)


def test_half_of_a_surrogate_pair_in_a_log_is_a_question_mark(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text(line("stage", 1, "a\ud800b", stage="TRAINING") + "\n", encoding="utf-8")
    run = read(log)
    assert [entry.seed for entry in run.log] == ["a?b"]
    assert "a?b" in write(log).read_text(encoding="utf-8")
