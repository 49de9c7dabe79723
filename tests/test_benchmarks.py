"""The benchmarks run, say what is so, and their committed results are whole."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import by_hand, cycles, perf_comparison, perf_report, soak
from benchmarks.footprint import footprint, growth

BASELINES = Path(soak.OUT).parent
STEPS = 4


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


def test_a_footprint_sees_what_is_kept():
    before = footprint()
    kept = [torch.zeros(1000) for _ in range(50)]
    assert growth(before, footprint())["tensors"] == len(kept)


def test_cycles_leave_nothing_behind():
    run = cycles.run(cycles=30)
    assert run["growth"]["tensors"] <= 0
    assert run["growth"]["linecache_entries"] == run["growth"]["fx_loader_entries"] == 0
    assert (run["seeds_left"], run["isolation_violations"]) == (0, 0)
    assert run["checks"] == 60


@pytest.mark.parametrize("network", perf_comparison.NETWORKS)
def test_the_same_network_by_hand_trains_the_same(network):
    """Else the comparison of times would compare two different things."""
    comparison = perf_comparison.Comparison(network, "eager", [5], steps=STEPS)
    batches = perf_comparison._batches()
    for arm in comparison.arms.values():
        arm.train(batches, STEPS - 1)
    loss = {name: arm.loss.item() for name, arm in comparison.arms.items()}
    assert loss["baseline"] == loss["baseline again"] == loss["disabled"] == loss["5 training"]
    assert loss["5 training, by hand"] == pytest.approx(loss["5 training"], rel=1e-5)
    assert loss["5 blending, by hand"] == pytest.approx(loss["5 blending"], rel=1e-5)
    assert loss["5 blending"] != loss["baseline"]


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


def rows(*ratios: tuple[str, str, float]) -> list[dict]:
    return [{"arm": a, "against": b, "ratio": {"wall": {"median": r}}} for a, b, r in ratios]


def test_budgets_are_judged():
    found = rows(("baseline again", "baseline", 1.005), ("disabled", "baseline", 1.02))
    found += rows(("4 training", "4 training, by hand", 1.03))
    perf_report.judge(found, "inductor")
    assert [row.get("kept") for row in found] == [None, False, False]
    perf_report.judge(found, "eager")
    assert found[2]["kept"]
    assert found[2]["budget"] == 1.05


def test_a_short_comparison_is_written(tmp_path, monkeypatch):
    arguments = ["--no-inductor", "--networks", "small_cnn", "--seeds", "1", "--repeats", "1"]
    arguments += ["--rounds", "2", "--steps", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["perf_comparison", *arguments])
    perf_comparison.main()
    record = json.loads((tmp_path / "perf_comparison.json").read_text())
    check_comparison(record)
    assert "| 1 blending |" in (tmp_path / "perf_comparison.md").read_text()


def check_comparison(record: dict) -> None:
    assert {"cpu", "packages", "date", "commit"} <= record["environment"].keys()
    assert record["command"].startswith("python -m benchmarks.perf_comparison")
    for table in record["tables"]:
        arms = {row["arm"]: row for row in table["rows"]}
        assert {"baseline", "baseline again", "disabled"} < arms.keys()
        assert all(row["median_step_ms"] > 0 and row["loss"] > 0 for row in table["rows"])
        judged = [row for name, row in arms.items() if name[0].isdigit() and "by hand" not in name]
        assert judged
        assert all(row["kept"] == (row["ratio"]["wall"]["median"] <= row["budget"]) for row in judged)


# What is committed


def test_the_committed_soak_is_whole_and_passed():
    record = json.loads((BASELINES / "seed_soak_summary.json").read_text())
    assert record["epochs"] == 100
    assert record["passed"]
    assert all(record["verdicts"].values())
    assert record["isolation"]["violations"] == 0 < record["isolation"]["checks"]
    assert {run["cycles"] for run in record["cycles"]} == {200}
    assert {"cpu", "packages", "date", "commit"} <= record["environment"].keys()
    assert record["command"].startswith("python -m benchmarks.soak")


def test_the_committed_comparison_is_whole():
    record = json.loads((BASELINES / "perf_comparison.json").read_text())
    check_comparison(record)
    kinds = {(table["network"], table["backend"]) for table in record["tables"]}
    assert {network for network, _ in kinds} == {"mlp_12", "small_cnn"}
