"""What `benchmarks.worth` runs, how long it says that takes, and when it says that results repeat."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot

from benchmarks.worth import __main__ as command
from benchmarks.worth import data, plot, repeat, results, running, summary
from benchmarks.worth.arms import GROW, PRIMARY
from benchmarks.worth.budgeted import BudgetedTrainer
from benchmarks.worth.models import GPT
from benchmarks.worth.plan import plan_of
from benchmarks.worth.prepare import DataError
from benchmarks.worth.progress import Costs, Progress
from benchmarks.worth.protocols import PROTOCOLS, Protocol, Scale
from benchmarks.worth.running import Runner
from benchmarks.worth.training import Run, Trainer
from benchmarks.worth.workloads import Workload

SCALE = Scale(20, 2, 8, (1, 2, 8), (0.3, 0.6, 1.0), (0.003,), validation=4, test=6, points=4)
ALL = argparse.Namespace(only=None, seeds=None, workload=None, minutes=None, list=False, report=False)


def tiny(name: str = "gpt", scale: Scale = SCALE) -> Workload:
    """A workload of random characters, in which a step takes a millisecond."""
    codes = torch.randint(11, (500,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    text = data.Text(codes, codes, codes)
    return Workload(
        name,
        scale,
        partial(GPT, vocabulary=11, context=8, width=8, hidden=16),
        partial(text.batch, size=2, context=8),
        partial(text.evaluation, size=3, context=8),
        decay=0.1,
    )


def small(name: str, **changes: object) -> Protocol:
    """A protocol whose only workload is `tiny`."""
    return replace(PROTOCOLS[name], **{"scales": {"gpt": SCALE}} | changes)


def record(name: str, seed: int, *losses: float, rate: float = 0.003, seconds: float = 10.0) -> dict:
    """Of a run with one end for each loss."""
    shares = (0.3, 0.6, 1.0)[-len(losses) :]
    return {
        "run": {"workload": "gpt", "arm": name, "seed": seed, "rate": rate, "tuning": False},
        "environment": {},
        "ends": [
            {"share": share, "validation": loss, "test": loss, "flops": {"train": 100 * share},
             "seconds": {"train": seconds * share}}
            for share, loss in zip(shares, losses, strict=True)
        ],
    }  # fmt: skip


def named(*records: dict) -> results.Records:
    return {results.run_of(each).name: each for each in records}


# How long it takes


def test_a_run_costs_its_longest_end_and_the_decays_of_the_others():
    costs = Costs(small("short"), tiny())
    assert costs.of(Run("gpt", "fixed-2", 0, 0.003)) == pytest.approx(1.0 + 0.2 * (0.3 + 0.6))
    assert costs.of(Run("gpt", "fixed-2", 100, 0.003, tuning=True)) == pytest.approx(0.2)
    one = tiny().step_flops(1) / tiny().step_flops(8)
    ends = [0.5 * one + end - 0.5 for end in (0.8, 1.0, 1.3)]
    assert costs.of(Run("gpt", "deepen-1-8", 0, 0.003)) == pytest.approx(ends[2] + 0.2 * (ends[0] + ends[1]))


def test_ends_of_a_budget_are_runs_of_their_own_and_cost_what_they_are_given():
    costs = Costs(small("unknown"), tiny())
    assert costs.of(Run("gpt", "grow", 3, 0.003)) == pytest.approx(0.35 + 1.0)


def test_the_time_left_is_that_of_earlier_records_then_of_the_runs_of_this_process(monkeypatch, capsys):
    costs = Costs(small("short"), tiny())
    runs = [Run("gpt", f"fixed-{depth}", 0, 0.003) for depth in (1, 2)]
    assert Progress(costs, {}).minutes(runs) is None
    progress = Progress(costs, named(record("fixed-8", 0, 2.0, seconds=60.0)))
    cost = 1.18
    assert progress.minutes(runs) == pytest.approx(2 * cost)  # a cost of 1 took a minute
    clock = iter([0.0, 600.0])
    monkeypatch.setattr("benchmarks.worth.progress.time.monotonic", lambda: next(clock))
    progress.begin(runs[0], runs)
    progress.end(record("fixed-1", 0, 2.0))
    assert progress.minutes(runs[1:]) == pytest.approx(10.0)
    assert "2 runs known to be left, about 2 min" in capsys.readouterr().out


def test_the_list_names_what_is_missing_with_the_minutes_and_what_waits_for_its_learning_rate(
    tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(running, "workload", tiny)
    protocol = small("unknown", rates_of=None)
    running.tell(protocol, tmp_path, ALL)
    told = capsys.readouterr().out
    assert "unknown gpt-fixed-2-lr0.003-seed100-tuning" in told
    assert "unknown gpt-grow-seed5, when its learning rate is chosen" in told
    assert "not known how long" in told
    first = record("fixed-1", 100, 2.0)
    first["run"]["tuning"] = True
    for each in (first, record("fixed-1", 3, 2.0, seconds=60.0)):
        results.write(results.folder(protocol, tmp_path), each)
    running.tell(protocol, tmp_path, argparse.Namespace(**{**vars(ALL), "only": ["fixed-1"]}))
    *runs, last = capsys.readouterr().out.splitlines()
    assert runs == ["unknown gpt-fixed-1-lr0.003-seed4", "unknown gpt-fixed-1-lr0.003-seed5"]
    assert last == "unknown gpt: 2 runs missing, about 2 min of one core"


def test_the_list_without_data_names_the_runs_and_what_to_do(tmp_path: Path, monkeypatch, capsys):
    def no_data(*_: object) -> Workload:
        raise DataError("run prepare")

    monkeypatch.setattr(running, "workload", no_data)
    running.tell(small("short"), tmp_path, ALL)
    assert capsys.readouterr().out.splitlines()[-1].endswith("runs missing. run prepare")


# Running


def test_all_that_is_missing_is_run_and_one_that_fails_hides_no_other(tmp_path: Path, monkeypatch, capsys):
    protocol = small("unknown_extra", scales={"gpt": replace(SCALE, depths=(1, 2))}, seeds=(3, 4))
    train = Trainer.train

    def failing(self: Trainer) -> dict:
        if (self.run.arm, self.run.seed) == ("fixed-1", 3):
            raise RuntimeError("broken")
        return train(self)

    out = tmp_path / "out"

    def missing() -> list[Run]:
        return running.missing(protocol, "gpt", out, ALL)

    wanted = {run.name for run in missing()}
    assert len(wanted) == 4
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", failing)
        runner = Runner(protocol, tiny(), out, tmp_path, {})
        runner.run_all(missing)
    assert runner.failed == ["gpt-fixed-1-lr0.003-seed3"]
    told = capsys.readouterr().out
    assert "gpt-fixed-1-lr0.003-seed3 FAILED: RuntimeError: broken" in told
    assert "1 runs failed" in told
    folder = results.folder(protocol, out)
    assert results.read(folder).keys() == wanted - {"gpt-fixed-1-lr0.003-seed3"}
    Runner(protocol, tiny(), out, tmp_path, {}).run_all(missing, until=-math.inf)  # the time is over
    assert len(missing()) == 1
    Runner(protocol, tiny(), out, tmp_path, {}).run_all(missing)
    assert not missing()
    kept = results.read(folder)["gpt-fixed-2-lr0.003-seed4"]
    assert kept["command"].endswith("--protocol unknown_extra --workload gpt --only fixed-2 --seeds 4")
    assert kept["environment"]["torch_threads"] == torch.get_num_threads()


@pytest.fixture
def quick(monkeypatch) -> None:
    """`--quick` with networks that take milliseconds, and no committed results."""
    monkeypatch.setitem(PROTOCOLS, "quick", small("quick", scales={"gpt": replace(SCALE, steps=12)}))
    monkeypatch.setattr(command, "workload", tiny)
    monkeypatch.setattr("sys.argv", ["worth", "--quick"])


def test_quick_runs_every_arm_and_keeps_nothing(quick, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for run in plan_of(PROTOCOLS["quick"], "gpt", {}).arms:
        assert f"gpt-{run}-lr0.003-seed0" in told
    assert not list(tmp_path.iterdir())


def test_quick_says_by_its_exit_code_that_an_arm_does_not_run(quick, monkeypatch, capsys):
    def broken(self: Trainer) -> dict:
        raise RuntimeError("broken")

    for trainer in (Trainer, BudgetedTrainer):  # none trains, so that it takes no time
        monkeypatch.setattr(trainer, "train", broken)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    assert "gpt-fixed-1-lr0.003-seed100-tuning FAILED: RuntimeError: broken" in capsys.readouterr().out


# Whether results repeat

COMMITTED = named(
    *(record("fixed-1", seed, 2.0 + 0.01 * (seed - 1)) for seed in range(3)),  # a deviation of 0.01
    *(record("fixed-2", seed, 1.5 + 0.01 * (seed - 1)) for seed in range(3)),
    record("fixed-8", 0, 1.9),
)
ERROR = 0.01 * math.sqrt(2)


def moved(by: float, *names: str) -> results.Records:
    """Those runs again, with other losses."""
    chosen = {name: COMMITTED[name] for name in names or COMMITTED}
    return {
        name: each | {"ends": [end | {"test": end["test"] + by} for end in each["ends"]]}
        for name, each in chosen.items()
    }


def test_the_error_is_the_deviation_between_random_seeds_pooled():
    assert repeat.deviations(COMMITTED) == {"gpt": pytest.approx(0.01)}


def test_runs_that_come_to_the_same_repeat():
    verdict = repeat.compared(moved(0.0), COMMITTED)
    assert verdict.same
    assert "7 ends repeated, 7 to the last digit" in str(verdict)
    assert "They repeat the committed ones" in str(verdict)


def test_one_run_repeats_within_two_standard_errors_and_not_beyond():
    name = "gpt-fixed-8-lr0.003-seed0"
    within = repeat.compared(moved(1.9 * ERROR, name), COMMITTED)
    assert within.same
    assert within.ends[0].errors == pytest.approx(1.9)
    beyond = repeat.compared(moved(2.0 * ERROR, name), COMMITTED)
    assert not beyond.same
    assert f"{name} at 1: 1.9283, committed 1.9000 ± 0.0141" in str(beyond)
    assert "DO NOT repeat" in str(beyond)


def test_many_runs_that_are_all_a_little_worse_do_not_repeat():
    assert repeat.compared(moved(1.0 * ERROR), COMMITTED).same
    verdict = repeat.compared(moved(1.3 * ERROR), COMMITTED)
    assert not verdict.outside, "none of them alone is"
    assert verdict.shift == pytest.approx(1.3 * math.sqrt(7))
    assert not verdict.same


def test_a_loss_that_is_not_finite_does_not_repeat():
    assert not repeat.compared(moved(math.nan, "gpt-fixed-8-lr0.003-seed0"), COMMITTED).same


def test_a_run_that_costs_more_does_not_repeat():
    dearer = moved(0.0, "gpt-fixed-8-lr0.003-seed0")
    (each,) = dearer.values()
    each["ends"][0]["flops"] = {"train": 102.0}
    assert not repeat.compared(dearer, COMMITTED).same


def test_results_of_which_none_is_committed_are_not_compared():
    assert str(repeat.compared(named(record("fixed-1", 9, 1.0)), COMMITTED)).startswith("None of these")


def test_committed_runs_are_made_again_and_compared(tmp_path: Path, monkeypatch, capsys):
    protocol = small("unknown_extra", scales={"gpt": replace(SCALE, depths=(2,))})
    monkeypatch.setitem(PROTOCOLS, "unknown_extra", protocol)
    monkeypatch.setattr(command, "workload", tiny)
    monkeypatch.setattr(command, "COMMITTED", tmp_path / "committed")
    monkeypatch.chdir(tmp_path)
    options = argparse.Namespace(**vars(ALL))
    command.run(protocol, options, tmp_path / "committed", tmp_path, None)
    again = "gpt-fixed-2-lr0.003-seed4"
    assert command.again([again], tmp_path / "again")
    told = json.loads((tmp_path / "again" / repeat.FILE).read_text(encoding="utf-8"))
    assert told["command"] == f"python -m benchmarks.worth --repeat {again}"
    assert (told["repeats"], told["to_the_last_digit"]) == (True, 3)
    folder = results.folder(protocol, tmp_path / "again")
    changed = results.read(folder)[again]
    changed["ends"][0]["test"] += 1.0
    results.write(folder, changed)
    assert not command.again([again], tmp_path / "again"), "its record is there and is compared anew"
    with pytest.raises(SystemExit, match="no committed run is named nonsense"):
        command.again(["nonsense"], tmp_path / "again")


def test_the_sample_is_committed_and_has_growth_of_each_workload():
    committed = results.everything(command.COMMITTED)
    runs = [results.run_of(committed[name]) for name in repeat.SAMPLE]
    for workload in PROTOCOLS["short"].scales:
        arms = [run.arm for run in runs if run.workload == workload]
        assert any(arm.startswith(("grow", "deepen")) for arm in arms)
        assert any(arm.startswith(("fixed", "gstack")) for arm in arms)


def test_the_committed_repeat_is_of_the_sample_and_of_the_committed_numbers():
    told = json.loads((command.COMMITTED / repeat.FILE).read_text(encoding="utf-8"))
    committed = results.everything(command.COMMITTED)
    # Those that do not are told: growth decided otherwise on another kind of processor.
    far = [end for end in told["ends"] if abs(end["errors"]) > told["allowed_errors"]]
    assert [(end["run"], end["share"]) for end in far] == [
        ("cnn-grow-lr0.016-seed3", 0.35),
        ("cnn-grow-lr0.016-seed4", 0.35),
    ]
    assert not told["repeats"]
    page = (Path(__file__).parents[1] / "docs" / "growth.md").read_text(encoding="utf-8")
    here, there = (" and ".join(f"{end[which]:.3f}" for end in far) for which in ("here", "committed"))
    assert f"ended at {here} and not at {there}" in page
    assert f"{len(told['ends'])} ends of {len(repeat.SAMPLE)} runs" in page
    assert f"{told['to_the_last_digit']} are the same to the last digit" in page
    apart = sum(abs(end["here"] - end["committed"]) for end in told["ends"] if end not in far)
    others = len(told["ends"]) - told["to_the_last_digit"] - len(far)
    assert f"{others} others differ by {apart / others:.3f} nats on average" in page
    assert {end["run"] for end in told["ends"]} == set(repeat.SAMPLE)
    for end in told["ends"]:
        (same,) = (each for each in committed[end["run"]]["ends"] if each["share"] == end["share"])
        assert end["committed"] == round(same["test"], 5)


def test_the_pictures_have_each_arm_at_its_end_and_the_control_that_was_added(tmp_path: Path):
    found = summary.experiments(PROTOCOLS["short"], command.COMMITTED)
    plot.draw(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"worth.png", "worth_gpt.png"}
    figure, (front, cnn) = pyplot.subplots(1, 2)
    plot.front(front, *found["gpt"][:2])
    plot.panel(cnn, *found["cnn"])
    told = [{text.get_text() for text in axes.texts} for axes in (front, cnn)]
    pyplot.close(figure)
    sizes = {f"{depth} block{'s' if depth > 1 else ''} from the start" for depth in (1, 2, 3, 4, 6, 8)}
    assert told[0] == sizes | {plot.FRONT[arm][0] for arm in (PRIMARY, GROW)}
    assert {"2 blocks", f"2 blocks, {plot.OTHER}", "growth, size not known"} <= told[1]


def test_protocols_that_are_kept_share_no_names():
    folders = [results.read(command.COMMITTED / "worth" / name) for name in results.KEPT]
    assert len(results.everything(command.COMMITTED)) == sum(map(len, folders))


def test_a_control_with_one_given_rate_is_not_tuned():
    plan = plan_of(PROTOCOLS["unknown_extra"], "cnn", {})
    assert [run.name for run in plan.missing()] == [f"cnn-fixed-2-lr0.016-seed{seed}" for seed in (3, 4, 5)]
    assert not plan.waiting()
