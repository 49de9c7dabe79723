"""The benchmarks run, compute and tell what is so; their committed results are whole. Nothing is timed."""

from __future__ import annotations

import copy
import gc
import itertools
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from benchmarks import __main__ as command
from benchmarks import (
    bench_alternatives,
    bench_changes,
    bench_cycles,
    bench_dormant,
    bench_edit,
    bench_germination,
    bench_memory,
    bench_peft,
    bench_seeds,
    budgets,
    by_hand,
    environment,
    gpu,
    report,
    soak,
)
from benchmarks.footprint import footprint, growth
from benchmarks.modes import MODES, Mode
from benchmarks.record import Part, Record, reasons
from benchmarks.rows import Row, Spread, number
from benchmarks.runner import BENCHMARKS
from benchmarks.settings import Settings
from benchmarks.timing import Clock, Profiler, ratio
from benchmarks.workloads import WORKLOADS, MlpBlock

BASELINES = Path(soak.OUT).parent
TINY = Settings(Clock(1, 1, 1, warm_up=2), repeats=1, quick=True, cold=False)
CHEAP = Mode("aot_eager", MODES["aot_eager"].options)
SMALL = replace(
    WORKLOADS["MLP-12"],
    make=lambda: nn.Sequential(nn.Linear(64, 8), MlpBlock(8), MlpBlock(8), nn.Linear(8, 10)),
    blocks=("1", "2"),
    places=("1.relu", "2.relu"),
)


# Both sides do the same work, or their times could not be compared


@pytest.mark.parametrize(
    ("workload", "mode", "stage"),
    [
        *itertools.product(WORKLOADS, ["eager"], bench_seeds.EAGER_STAGES),
        ("GPT-2", "aot_eager", "blending"),  # whose code takes another way when it is compiled
    ],
)
def test_the_same_network_by_hand_trains_the_same(workload, mode, stage, fresh_compiler):
    ours, theirs = bench_seeds.pair(WORKLOADS[workload], MODES[mode], 5, stage)
    for _ in range(3):
        for side in (ours, theirs):
            torch.manual_seed(3)
            side.step()
        torch.testing.assert_close(ours.loss, theirs.loss)


def test_blending_by_hand_changes_the_loss():
    """Else the test above would not see seeds that do not run."""
    workload = WORKLOADS["MLP-12"]
    _, theirs = bench_seeds.pair(workload, MODES["eager"], 1, "blending")
    model = workload.model()
    module = nn.Linear(192, 192)
    by_hand.graft(model, workload.place(0), module, "blending").alpha.fill_(1.0)
    (x,), _ = workload.example()
    assert not torch.equal(model(x), workload.model()(x))
    assert isinstance(theirs.after, bench_seeds.Ramp)


def test_isolation_by_hand_gives_the_seed_the_same_gradient():
    seed = nn.Linear(6, 6)
    by_library = copy.deepcopy(seed)
    h = torch.randn(4, 6)
    by_hand.IsolatedByHand(seed)(h.clone().requires_grad_()).square().sum().backward()

    from fxgraft_passes import operators

    radius = by_hand.RADIUS
    out = operators.isolated(h.clone().requires_grad_(), by_library(h), "residual", "trust", radius)
    out.square().sum().backward()
    torch.testing.assert_close(seed.weight.grad, by_library.weight.grad)


@pytest.mark.parametrize("put", bench_alternatives.PUTS.values(), ids=bench_alternatives.PUTS)
def test_hooks_and_fx_by_hand_train_as_the_library_does(put):
    workload = WORKLOADS["MLP-12"]
    sides = bench_alternatives.grown(workload), bench_alternatives.other(workload, put)
    for _ in range(3):
        for side in sides:
            side.step()
    torch.testing.assert_close(sides[0].loss, sides[1].loss)


def test_peft_and_fxgraft_adapt_the_same_layers_with_as_many_parameters(fresh_compiler):
    workload, mode = SMALL, MODES["eager"]
    theirs = bench_peft._by_peft(workload, mode, bench_peft.Found(), TINY)
    ours = bench_peft._grown(workload, mode, bench_peft.Found(), TINY)

    def sizes(trainer):
        return sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])

    bare = sum(p.numel() for p in workload.model().parameters())
    assert sizes(ours) == sizes(theirs) == bare + 2 * 2 * bench_peft.RANK * 8


def test_an_edit_by_hand_is_the_seed_in_the_graph_and_goes_back():
    graph = fx.symbolic_trace(bench_edit.modular(100))
    before, x = graph.code, torch.randn(2, bench_edit.WIDTH)
    alone = graph(x)
    bench_edit.insert(graph, "1.3.relu")
    assert not torch.equal(graph(x), alone)
    bench_edit.remove(graph)
    graph.delete_submodule("seed")
    graph.recompile()
    assert graph.code == before


@pytest.mark.parametrize("nodes", [100, 1000])
def test_the_modular_host_has_the_size_that_it_says(nodes):
    host = bench_edit.Editable(nodes).host
    found = sum(len(region.graph.nodes) for region in host.regions.values())
    assert found == pytest.approx(nodes, rel=0.3)


# The benchmarks run


@pytest.mark.parametrize("name", ["dormant", "seeds", "memory", "alternatives", "cycles", "edit", "growth"])
def test_a_tiny_run(name, monkeypatch):
    monkeypatch.setattr(bench_cycles, "FEW", 2)
    monkeypatch.setattr(bench_memory, "SEEDS", (1,))
    settings = replace(TINY, modes=("eager",))
    found = list(BENCHMARKS[name].rows(settings))
    assert found
    assert {row.question for row in found} == {name}
    assert all(row.measured.low <= row.measured.median <= row.measured.high for row in found)
    assert len({row.key for row in found}) == len(found)


def test_changes_count_what_the_design_allows(fresh_compiler):
    found = list(bench_changes.rows(replace(TINY, modes=("inductor", "inductor, by region"))))
    counts = [row for row in found if row.unit == "compiles"]
    assert [row.measured.median for row in counts] == [2, 0, 2, 0]
    assert all(row.is_met for row in counts)


def test_a_tiny_germination(fresh_compiler):
    found = bench_germination.measure(SMALL, CHEAP, 1, TINY)
    rows = list(bench_germination.tell(SMALL, CHEAP, found))
    assert [row.budget for row in rows][:3] == [budgets.LONGEST, budgets.PREPARING, budgets.FIRST]
    assert rows[0].sides[1] == pytest.approx(found.recompile[0] * 1e3)
    assert rows[0].measured.median == pytest.approx(found.longest[0] / found.recompile[0])


def test_a_tiny_comparison_with_peft(fresh_compiler):
    rows = list(bench_peft.compare(SMALL, CHEAP, TINY))
    assert {row.budget for row in rows} == {budgets.PEFT}
    assert all(min(row.sides) > 0 for row in rows)


def test_a_profile_names_functions():
    said = []
    settings = replace(TINY, meter=Profiler(said.append, steps=2), modes=("eager",))
    list(bench_dormant.rows(settings))
    assert any("run_backward" in text for text in said)


# They compute what they say


def test_a_ratio_is_the_median_over_rounds_and_then_over_repeats():
    ours = [[1.0, 2.0, 9.0], [3.0, 3.0, 3.0], [4.0, 4.0, 4.0]]
    theirs = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert ratio(ours, theirs) == Spread(median=3.0, low=2.0, high=4.0, repeats=3)


def test_a_clock_lets_all_sides_take_as_many_turns():
    calls = []
    sides = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    found = Clock(repeats=2, rounds=3, steps=4, warm_up=1).interleaved(sides)
    assert calls.count("a") == calls.count("b") == 1 + 2 * 3 * (4 + 1)
    assert [len(rounds) for rounds in found["a"]] == [3, 3]
    longest = max(len(run) for run in "".join(calls).replace("ab", "a b").replace("ba", "b a").split())
    assert longest < len(calls) / 2  # in turns, not one after the other


def row(measured: float, limit: float | None = 1.05, **rest) -> Row:
    budget = None if limit is None else replace(budgets.SEEDS_EAGER, limit=limit)
    given = {"workload": "MLP-12", "mode": "eager", "what": "step", "against": "by hand", **rest}
    return Row("seeds", measured=Spread.of([measured]), unit="x", budget=budget, **given)


def test_budgets_are_judged():
    assert row(1.05).verdict == "met"
    assert row(1.10).verdict == "missed by 0.05 (4.8%)"
    assert row(3, limit=0).verdict == "missed by 3"
    assert row(7, limit=None).verdict == ""
    assert [r.is_met for r in (row(1.05), row(1.06), row(7, limit=None))] == [True, False, True]


def test_numbers_are_short():
    assert [number(v) for v in (2, 1.0234, 0.00491, 12317.4, 0.5)] == [
        "2",
        "1.023",
        "0.00491",
        "1.23e+04",
        "0.500",
    ]


def test_peak_memory_counts_what_a_step_allocates():
    kept = []

    def step():
        a = torch.zeros(1000)
        b = torch.zeros(500)
        del a, b
        torch.zeros(1200)

    floor = bench_memory.alive()
    kept.append(torch.zeros(2000))
    assert bench_memory.peak(step) - floor == 4 * (2000 + 1500)


def test_peak_memory_sees_what_an_earlier_step_left_go():
    """As ``zero_grad`` lets the gradients of the step before go."""
    kept = []

    def step():
        kept.clear()
        kept.append(torch.zeros(1000))

    floor = bench_memory.alive()
    assert bench_memory.peak(step) - floor == 4 * 1000


@pytest.mark.parametrize("stage", bench_seeds.STAGES)
def test_peak_memory_by_hand_counts_nothing_of_the_host(stage):
    gc.collect()
    before = {id(thing) for thing in gc.get_objects() if isinstance(thing, nn.Parameter)}
    trainer = bench_memory.by_hand_alone(SMALL, MODES["eager"], 3, stage)
    gc.collect()
    made = {id(thing) for thing in gc.get_objects() if isinstance(thing, nn.Parameter)} - before
    assert made == {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}


def test_a_footprint_sees_what_is_kept():
    before = footprint()
    kept = [torch.zeros(1000) for _ in range(50)]
    assert growth(before, footprint())["tensors"] == len(kept)


def test_cycles_leave_nothing_behind():
    run = bench_cycles.run(cycles=30)
    assert run["growth"]["tensors"] <= 0
    assert run["growth"]["linecache_entries"] == run["growth"]["fx_loader_entries"] == 0
    assert (run["seeds_left"], run["isolation_violations"]) == (0, 0)
    assert run["checks"] == 60


# They tell it


ENVIRONMENT = environment.describe()


def record() -> Record:
    rows = (row(1.02), row(1.11, what="step of four"), row(5, None, what="free"))
    return Record({"seeds": Part("python -m benchmarks", ENVIRONMENT, 1.5, rows)})


def test_a_record_is_read_as_it_was_written(tmp_path):
    record().write(tmp_path)
    assert Record.read(tmp_path) == record()
    assert Record.read(tmp_path / "nowhere") == Record()


def test_a_part_that_is_measured_anew_replaces_its_old_rows():
    new = Part("again", {}, 0.1, (row(1.0),))
    both = record().with_part("dormant", new, BENCHMARKS).with_part("seeds", new, BENCHMARKS)
    assert list(both.parts) == ["dormant", "seeds"]
    assert both.rows == [row(1.0), row(1.0)]


def test_the_page_says_the_worst_and_what_is_missed_and_why():
    missed = row(1.11, what="step of four")
    page = report.markdown(record(), {missed.key: {"why": "the profile says so.", "tried": "this."}})
    summary = "| eager step, seeds live | the same network by hand, eager | ≤ 1.05 | "
    assert f"{summary}1.110 (MLP-12, eager: step of four) | 1 of 2 |" in page
    assert f"- **{missed.key}**: missed by 0.06 (5.7%)\n\nthe profile says so. Tried: this." in page
    assert "Not yet known" in report.markdown(record(), {})


def test_readme_is_rendered_between_its_markers():
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter"
    made = report.into_page(text, record())
    assert made.startswith("before\n")
    assert made.endswith("\nafter")
    assert report.summary(record()) in made
    assert "old" not in made
    assert report.into_page(made, record()) == made
    with pytest.raises(ValueError, match="once each"):
        report.into_page("no markers", record())


def test_the_command_writes_json_page_and_plots(tmp_path, monkeypatch):
    out = tmp_path / "results"
    monkeypatch.setattr(command, "describe", lambda: ENVIRONMENT | {"torch_threads": 8})
    arguments = ["--quick", "--only", "alternatives", "--out", str(out)]
    assert command.main(arguments) == 0
    part = Record.read(out).parts["alternatives"]
    assert part.rows
    assert part.environment["torch_threads"] == 1  # of the process that measured, not of this one
    assert "## alternatives" in (out / report.FILE).read_text()
    assert command.main(["--render", "--out", str(out)]) == 0


def test_a_run_that_was_broken_off_goes_on(tmp_path, monkeypatch):
    """With what there are no results of, or results of another commit."""
    measured = []
    monkeypatch.setattr(command, "run", lambda name, *_: measured.append(name) or [])
    monkeypatch.setattr(command, "describe", lambda: ENVIRONMENT | {"commit": "abc1234"})
    assert command.main(["--only", "changes", "cycles", "--out", str(tmp_path)]) == 0
    assert command.main(["--only", "changes", "peft", "--resume", "--out", str(tmp_path)]) == 0
    assert measured == ["changes", "cycles", "peft"]
    monkeypatch.setattr(command, "describe", lambda: ENVIRONMENT | {"commit": "abc1234+changes"})
    assert command.main(["--only", "changes", "--resume", "--out", str(tmp_path)]) == 0
    assert measured[3:] == ["changes"]


def test_a_benchmark_that_fails_is_told_and_leaves_the_other_results(tmp_path, capfd):
    record().write(tmp_path)
    arguments = ["--quick", "--only", "changes", "--modes", "eager", "--repeats", "0"]  # no median of none
    assert command.main([*arguments, "--out", str(tmp_path)]) == 1
    assert "StatisticsError" in capfd.readouterr().out
    assert Record.read(tmp_path) == record()


# The soak of WP-101


@pytest.fixture(scope="module")
def short_soak():
    return soak.Soak(epochs=10).run()


def test_a_short_soak_passes_its_own_verdicts(short_soak):
    assert [name for name, passed in short_soak["verdicts"].items() if not passed] == []
    assert short_soak["isolation"]["checks"] > 3


def test_a_soak_records_the_whole_course_of_alpha(short_soak):
    steps, alphas = short_soak["steps_per_epoch"], short_soak["alpha"]
    assert len(alphas) == 8 * steps  # epochs 1 to 8: germinated in 1, culled in 9
    ramp = alphas[2 * steps : 6 * steps]
    assert all(a < b for a, b in pairwise(ramp))
    assert set(alphas[6 * steps :]) == {1.0}
    assert set(alphas[: 2 * steps]) == {0.0}


def test_a_soak_that_leaks_does_not_pass():
    clean = {"rss_mib": 0.0, "tensors": 0, "linecache_entries": 0, "fx_loader_entries": 0}
    assert soak._is_flat(clean)
    leaks = {"rss_mib": 100.0, "tensors": 1, "linecache_entries": 2, "fx_loader_entries": 3}
    for name, size in leaks.items():
        assert not soak._is_flat({**clean, name: size})


# What is committed

COMMITTED = Record.read(command.RESULTS)
PAGE = command.PAGE.read_text(encoding="utf-8")


def test_the_committed_soak_is_whole_and_passed():
    record = json.loads((BASELINES / "seed_soak_summary.json").read_text())
    assert record["epochs"] == 100
    assert record["passed"]
    assert all(record["verdicts"].values())
    assert record["isolation"]["violations"] == 0 < record["isolation"]["checks"]
    assert {run["cycles"] for run in record["cycles"]} == {200}
    assert {"cpu", "packages", "date", "commit"} <= record["environment"].keys()
    assert record["command"].startswith("python -m benchmarks.soak")


def test_the_committed_results_are_whole():
    """Nothing to see while there are none."""
    for name, part in COMMITTED.parts.items():
        assert name in BENCHMARKS
        assert part.command.startswith("python -m benchmarks")
        assert "--quick" not in part.command
        assert {"cpu", "packages", "date", "commit"} <= part.environment.keys()
        assert part.rows
        json.dumps(part.as_json(), allow_nan=False)
    if COMMITTED.parts:
        assert COMMITTED.parts.keys() == BENCHMARKS.keys()
        limited = {row.budget.what for row in COMMITTED.rows if row.budget}
        assert limited == {b.what for b in budgets.ALL}


def test_the_committed_page_is_that_of_the_committed_results():
    if COMMITTED.parts:
        page = (command.RESULTS / report.FILE).read_text(encoding="utf-8")
        assert page == report.markdown(COMMITTED)


def test_the_page_of_measurements_quotes_the_committed_results():
    if COMMITTED.parts and report.BEGIN in PAGE:
        assert report.into_page(PAGE, COMMITTED) == PAGE


def test_every_missed_budget_has_a_reason_and_no_reason_is_stale():
    told = {report.reason_of(row, reasons()) for row in COMMITTED.rows if not row.is_met}
    assert not any(text.startswith("Not yet known") for text in told)
    assert len(told) == len(reasons())
    assert all(reason["why"] and reason["tried"] for reason in reasons().values())


# On a GPU


def test_the_script_for_a_gpu_works_on_a_cpu(tmp_path: Path) -> None:
    """A little of every part: it is not there to measure, but to show that it would run."""
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    rows = [Row.from_json(row) for row in record["rows"]]
    assert {row.question for row in rows} == {"seeds", "germination", "memory"}
    assert record["notes"] == ["a dry run on a CPU: nothing was measured"]
    assert "dry run" in (tmp_path / "gpu.md").read_text()


def test_parts_on_a_gpu_end_in_time_and_keep_what_they_found(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []
    row = Row("seeds", "MLP-12", "reduce-overhead", "step", "by hand", Spread.exactly(1.0), "x")

    def run(command: list[str], limit: float) -> tuple[str, str]:
        asked.append((command[2], limit))
        if "pytest" in command:
            return "3 passed in 1 s\n", ""
        return json.dumps(row.as_json()) + "\nnoise\n", "ended after 5 s" if "memory" in command else ""

    monkeypatch.setattr(gpu, "_run", run)
    rows, notes = gpu._each_in_time(["tests", "seeds", "memory"], "cuda")
    assert asked[0] == ("pytest", 150)
    assert rows == [row, row]
    assert notes == ["tests: ; 3 passed in 1 s", "memory: ended after 5 s"]
    assert sum(gpu.LIMITS.values()) <= gpu.SECONDS == 480
    monkeypatch.setattr(gpu, "SECONDS", 0)
    assert gpu._each_in_time(["seeds"], "cuda") == ([], ["seeds: not run, as the time was up"])


def test_without_a_gpu_the_script_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.devices, "accelerator", lambda: None)
    assert gpu.main([]) == 1
    assert "--dry-run" in capsys.readouterr().err
