"""The arithmetic of `benchmarks.worth`, and that its runs are what they say. Nothing is timed."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.worth import __main__ as command
from benchmarks.worth import data, experiments, prepare, results, schedule, summary, training, tried, unknown
from benchmarks.worth.analysis import Arms, Curve, End, estimate
from benchmarks.worth.arm import Arm
from benchmarks.worth.arms import ANYTHING, PRIMARY, TRIED, arms
from benchmarks.worth.budgeted import BudgetedTrainer
from benchmarks.worth.learners import KINDS, Setting
from benchmarks.worth.models import CNN, GPT, ThinCNN
from benchmarks.worth.plan import Plan
from benchmarks.worth.protocols import PROTOCOLS, Scale
from benchmarks.worth.questions import below_envelope, best_smaller_share, share_of_large, unknown_size
from benchmarks.worth.training import Run, Trainer
from benchmarks.worth.unknown import below_best
from benchmarks.worth.workloads import Workload, loss_of
from fxgraft.util.bits import same_bits
from fxgraft.util.flops import flop_counter

COMMITTED = Path(command.COMMITTED)
SCALE = Scale(20, 2, 8, (1, 2, 8), (0.3, 0.6, 1.0), (0.003,), validation=4, test=6, points=4)


def tiny() -> Workload:
    """A workload of random characters, in which a step takes a millisecond."""
    codes = torch.randint(11, (500,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    text = data.Text(codes, codes, codes)
    return Workload(
        "gpt",
        SCALE,
        partial(GPT, vocabulary=11, context=8, width=8, hidden=16),
        partial(text.batch, size=2, context=8),
        partial(text.evaluation, size=3, context=8),
        decay=0.1,
    )


ARMS = arms(replace(PROTOCOLS["short"], scales={"gpt": SCALE}), "gpt")
ARMS |= arms(replace(PROTOCOLS["unknown"], scales={"gpt": SCALE}), "gpt") | ARMS


def trained(arm: str, scratch: Path, **changes: object) -> dict[str, object]:
    return Trainer(Run("gpt", arm, 0, 0.003), replace(ARMS[arm], **changes), tiny(), scratch).train()


def without_seconds(record: dict[str, object]) -> str:
    """Everything that has to repeat, to the last digit."""

    def drop(value: object) -> object:
        if isinstance(value, dict):
            return {key: drop(each) for key, each in value.items() if key != "seconds"}
        return [drop(each) for each in value] if isinstance(value, list | tuple) else value

    return json.dumps(drop(record))


# What is charged


def test_flops_of_a_gpt_step_are_those_of_its_matrices_and_of_attention():
    width, hidden, tokens, context = 8, 16, 2 * 8, 8
    matrices = 3 * width * width + width * width + 2 * width * hidden
    attention = 4 * tokens * context * width  # scores and mixing; backward takes 2.5 times as much
    head = 11 * width
    for depth in (1, 3):
        expected = depth * (6 * tokens * matrices + 3.5 * attention) + 6 * tokens * head
        assert tiny().step_flops(depth) == expected


def test_flops_of_a_cnn_are_those_of_its_convolutions():
    with FlopCounterMode(display=False) as counting, torch.no_grad():
        CNN(2, channels=4)(torch.zeros(3, 1, 28, 28))
    blocks = 2 * 2 * (2 * 9 * 4 * 4) * 14 * 14 * 3
    stem, head = 2 * 25 * 4 * 14 * 14 * 3, 2 * 4 * 10 * 3
    assert counting.get_total_flops() == blocks + stem + head


def test_a_block_of_one_convolution_costs_half_and_sees_one_pixel_further():
    with FlopCounterMode(display=False) as counting, torch.no_grad():
        ThinCNN(2, channels=4)(torch.zeros(3, 1, 28, 28))
    assert counting.get_total_flops() == (2 * 2 * 9 * 4 * 4 + 2 * 9 * 4) * 14 * 14 * 3 + 2 * 4 * 10 * 3
    torch.manual_seed(0)
    image = torch.zeros(1, 4, 14, 14, requires_grad=True)
    blocks = ThinCNN(3, channels=4).eval().blocks
    nn.Sequential(*blocks)(image + 1)[0, :, 7, 7].sum().backward()
    seen = image.grad[0].abs().sum(0).nonzero()
    assert (seen.min(0).values.tolist(), seen.max(0).values.tolist()) == ([4, 4], [10, 10])


def test_every_step_and_every_evaluation_of_an_end_is_charged(tmp_path: Path):
    record, task = trained("fixed-2", tmp_path), tiny()
    forward = {}
    for part in ("validation", "test"):
        with flop_counter() as counting:
            task.measure(task.make(2), part)
        forward[part] = counting.get_total_flops()
    for end, steps in zip(
        record["ends"], [task.steps_for(2, share) for share in SCALE.fixed_ends], strict=True
    ):
        assert end["steps"] == steps
        assert end["flops"]["train"] == steps * task.step_flops(2)
        shared = sum(point["step"] <= schedule.decay_start(steps) for point in record["curve"])
        evaluations = shared + len(end["curve"])
        assert end["flops"]["evaluate"] == evaluations * forward["validation"] + forward["test"]
        assert all(seconds >= 0 for seconds in end["seconds"].values())
        assert end["seconds"]["train"] > 0


def test_fixed_sizes_are_given_the_same_flops():
    task = tiny()
    for depth, share in itertools.product((1, 2, 4), (0.5, 1.0)):
        given_to = task.steps_for(depth, share) * task.step_flops(depth)
        assert given_to == pytest.approx(share * SCALE.steps * task.step_flops(8), abs=task.step_flops(depth))


def test_growth_is_charged_for_the_size_that_it_has(tmp_path: Path):
    record, task = trained("gstack-2-8", tmp_path), tiny()
    for end in record["ends"]:
        expected = 10 * task.step_flops(2) + (end["steps"] - 10) * task.step_flops(8)
        assert end["flops"]["train"] == expected


def test_stochastic_depth_is_charged_for_the_blocks_that_run(tmp_path: Path):
    record, task = trained("stochastic-8", tmp_path), tiny()
    learner = KINDS["stochastic"](Setting(task, ARMS["stochastic-8"], 0, 0.003, SCALE.steps))
    running = []
    for step in range(20):
        learner.begin(step)
        running.append(learner.structure())
    assert record["ends"][0]["flops"]["train"] == sum(map(task.step_flops, running))
    assert min(running) < 8


# Runs

RESUMED = ["fixed-2", "gstack-2-8", "net2net-1-8", "stochastic-8", "deepen-2-4-8"]


@pytest.mark.parametrize(("arm", "killed_at"), [("fixed-2", 3), *((arm, 19) for arm in RESUMED)])
def test_a_run_that_was_killed_goes_on_to_the_bit(arm, killed_at, tmp_path: Path, monkeypatch):
    whole = trained(arm, tmp_path / "whole")
    monkeypatch.setattr(training, "SECONDS_BETWEEN_STATES", 0.0)
    step, left = Trainer._train_step, iter(range(killed_at))

    def killed(self: Trainer, *args: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(arm, tmp_path / "killed")
    assert list((tmp_path / "killed").iterdir())
    assert without_seconds(trained(arm, tmp_path / "killed")) == without_seconds(whole)
    assert not list((tmp_path / "killed").iterdir())


@pytest.mark.parametrize("arm", ["fixed-2", "stochastic-8", "deepen-2-4-8"])
def test_an_end_is_what_it_would_be_alone(arm, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(schedule, "WARM_UP", 1)  # which else is a tenth of the first end
    together = trained(arm, tmp_path)["ends"]
    (alone,) = trained(arm, tmp_path, ends=(together[-1]["share"],))["ends"]
    assert (alone["test"], alone["flops"]["train"]) == (together[-1]["test"], together[-1]["flops"]["train"])


FULL = arms(replace(PROTOCOLS["full"], scales={"gpt": SCALE}), "gpt")


@pytest.mark.parametrize("arm", ["widen", "deepen-1-8-muon", "muon-2", "autogrow"])
def test_further_arms_run_and_end_with_a_larger_network(arm, tmp_path: Path):
    task, it = tiny(), FULL[arm]
    it = replace(
        it, depth=min(it.depth, 2), changes=tuple((at, 2) for at, _ in it.changes)
    )  # small is enough
    record = Trainer(Run("gpt", arm, 0, 0.003), it, task, tmp_path).train()
    end = record["ends"][-1]
    assert math.isfinite(end["test"])
    hidden = {"hidden": it.options["hidden"]} if "hidden" in it.options else {}
    before = sum(p.numel() for p in task.make(it.depth, **hidden).parameters())
    if arm not in ("autogrow", "muon-2"):  # so few steps are no time at all; a fixed size
        assert record["parameters"] > before
    assert end["flops"]["train"] > 0


@pytest.mark.parametrize("arm", TRIED, ids=lambda arm: arm.name)
def test_what_is_tried_changes_one_thing(arm: Arm):
    """On few steps: that each arm grows, and does what its name says."""
    name = arm.name.removeprefix("deepen-1-2-")
    short = {key: 4 for key in ("isolated", "blend", "during") if key in arm.options}
    arm = replace(arm, options={**arm.options, **short})
    learner = KINDS["tried"](Setting(tiny(), arm, 0, 0.003, 10))
    learner.ledger, learner.counted = training.Ledger(), training.Counted()
    stages, moved = [], []
    for step in range(14):
        learner.begin(step)
        before = [p.detach().clone() for seed in learner.new for p in seed.module.parameters()]
        loss = learner.step(tiny().batch(0, step), 1.0)
        now = [p.detach() for seed in learner.new for p in seed.module.parameters()]
        moved += [max(float((a - b).abs().max()) for a, b in zip(before, now, strict=True))] if now else []
        learner.finish(loss)
        stages += [seed.stage.name for seed in learner.new]
    assert len(stages) == len(moved) == 10
    assert stages[-1] == "FOSSILIZED"
    assert ("TRAINING" in stages, "BLENDING" in stages) == ("isolated" in short, "blend" in short)
    first = {"slow-new": 0.25, "fast-new": 3.0, "warm-up": 0.25, "lower": 0.5**0.5}.get(name, 1.0)
    # The first step of AdamW is as large as the learning rate, but for weight decay.
    if name != "blend":  # whose first gradient is zero, as alpha is
        assert moved[0] == pytest.approx(0.003 * first, rel=0.1)


COPIED = [arm for arm in arms(PROTOCOLS["copies"], "gpt").values() if arm.how == "shares"]


@pytest.mark.parametrize("arm", COPIED, ids=lambda arm: arm.name)
def test_by_shares_of_the_budget_blocks_come_and_the_rate_falls(arm: Arm):
    learner = KINDS["shares"](Setting(tiny(), arm, 0, 0.003, 10))
    learner.ledger, learner.counted = training.Ledger(), training.Counted()
    learner.allow(1000)
    rates, depths = [], []
    for step in range(4):
        learner.ledger.flops["train"] = 100 * step
        learner.begin(step)
        learner.step(tiny().batch(0, 0), 1.0)
        rates.append(learner.optimizers[0].param_groups[0]["lr"])
        depths.append(learner.blocks)
    share, depth = arm.changes[0]
    assert depths == [arm.depth] * round(10 * share) + [depth] * (4 - round(10 * share))
    assert rates == [0.003 * (1.0 if 0.1 * step < share else 0.5**0.5) for step in range(4)]
    assert learner.told() == {"blocks": depth}


def test_the_schedule_rises_stays_and_falls_to_zero():
    total, warm = 50, schedule.warm_up(50)
    start = schedule.decay_start(total)
    rates = [schedule.constant(step, warm) for step in range(start)]
    rates += [schedule.decaying(step, total) for step in range(start, total)]
    assert (warm, start) == (5, 40)
    assert rates[:6] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    assert rates[40:42] == [1.0, 0.9]
    assert rates[-1] == pytest.approx(0.1)
    assert schedule.warm_up(10_000) == 100


def _grown(how: str, depth: int):
    arm = replace(ARMS[PRIMARY], how=how, depth=depth, changes=((0.5, 8),))
    learner = KINDS[how](Setting(tiny(), arm, 0, 0.003, SCALE.steps))
    for step in range(3):
        learner.step(tiny().batch(0, step), 1.0)
    before = learner.model
    learner.change()
    return before, learner


def test_net2net_keeps_the_function_and_the_state_of_what_was_there():
    before, learner = _grown("net2net", 1)
    codes = tiny().batch(0, 9)[0]
    assert same_bits(before(codes), learner.model(codes))
    stateful = {name for name, p in learner.model.named_parameters() if p in learner.optimizers[0].state}
    assert stateful == {name for name, _ in before.named_parameters()}
    loss_of(learner.model, tiny().batch(0, 9)).backward()
    assert learner.model.blocks[7].down.weight.grad.abs().sum() > 0


def test_g_stack_repeats_the_stack_in_its_order():
    before, learner = _grown("stack", 2)
    for at, block in enumerate(learner.model.blocks):
        for ours, theirs in zip(block.parameters(), before.blocks[at % 2].parameters(), strict=True):
            assert same_bits(ours.detach(), theirs.detach())
    assert not learner.optimizers[0].state


# Growth within a budget of FLOPs


GROWING = {"first": 0.1, "last": 0.5, "hold": 2, "init": "zero"}


def budgeted(scratch: Path, **options: object) -> dict[str, object]:
    """A run of "grow" on the tiny workload."""
    arm = replace(ARMS["grow"], ends=(0.5, 1.0), options=GROWING | options)
    scale = replace(SCALE, steps=60)
    return BudgetedTrainer(Run("gpt", "grow", 0, 0.003), arm, replace(tiny(), scale=scale), scratch).train()


def test_everything_of_a_budgeted_run_is_inside_of_its_budget(tmp_path: Path):
    record = budgeted(tmp_path)
    large = 60 * tiny().step_flops(8)
    for end in record["ends"]:
        spent = sum(end["flops"].values())
        assert end["share"] * large - 2 * tiny().step_flops(8) < spent <= end["share"] * large
        assert end["flops"]["change"] > 0
        assert end["blocks"] == 1 + sum(entry["what"] == "kept" for entry in end["history"])
        assert end["curve"][-1]["step"] == end["steps"]
        assert len([entry for entry in end["history"] if entry["what"] == "deepening"]) in (1, 2, 3)


def test_all_that_growth_by_itself_computes_is_charged(tmp_path: Path, monkeypatch):
    few = {"blueprints": ["low_rank"], "steps": 4, "window": 5, "hold": 4, "blend": 2, "flat": 1.0}
    arm = replace(ARMS[ANYTHING], options=few)
    task = replace(tiny(), scale=replace(SCALE, steps=60))
    known = {depth: task.step_flops(depth) for depth in (1, 8)}
    monkeypatch.setattr(Workload, "step_flops", lambda self, depth: known[depth])  # the harness asks for it
    with flop_counter() as counting:
        record = BudgetedTrainer(Run("gpt", ANYTHING, 0, 0.003), arm, task, tmp_path).train()
    (end,) = record["ends"]
    spent = sum(end["flops"].values())
    assert "exploring" in {entry["what"] for entry in end["history"]}
    assert 0 <= counting.get_total_flops() - spent < 6 * known[1], "all but the example calls of the trace"
    assert end["flops"]["change"] > 0
    assert end["parameters"] >= sum(p.numel() for p in task.make(1).parameters())


def test_a_budgeted_run_repeats_and_its_ends_are_runs_of_their_own(tmp_path: Path):
    whole = budgeted(tmp_path)
    assert without_seconds(whole) == without_seconds(budgeted(tmp_path))
    file = tmp_path / "gpt-grow-lr0.003-seed0.json"
    file.write_text(json.dumps(whole["ends"][:1]), encoding="utf-8")  # killed after its first end
    assert without_seconds(budgeted(tmp_path)) == without_seconds(whole)
    assert not file.exists()


def test_several_measurements_are_each_on_other_data_and_all_inside_of_the_budget(
    tmp_path: Path, monkeypatch
):
    asked: list[tuple[int, int]] = []
    plain = Workload.measure

    def measure(self, model, part, count=None, first=0):
        if part == "validation" and count is not None:
            asked.append((count, first))
        return plain(self, model, part, count, first)

    monkeypatch.setattr(Workload, "measure", measure)
    options = {**ARMS["grow"].options, "measurements": 2, "hold": 0.5}
    arm = replace(ARMS["grow"], options=options, ends=(1.0,))
    record = BudgetedTrainer(Run("gpt", "grow", 0, 0.003), arm, tiny(), tmp_path).train()
    end = record["ends"][0]
    assert sum(end["flops"].values()) <= SCALE.steps * tiny().step_flops(8)
    judged = [entry for entry in end["history"] if entry["what"] in ("kept", "dropped")]
    in_trials = [pair for pair in asked if pair[1]]
    assert judged
    assert {count for count, _ in in_trials} == {SCALE.validation // 2 // 2}
    pairs = [first for (_, first), calls in itertools.groupby(in_trials) if len(list(calls)) >= 2]
    assert len(pairs) >= 2 * len(judged), "both sides of a measurement see the same data"
    assert len(set(pairs)) == len(pairs), "each measurement sees other data"


def test_evaluations_from_elsewhere_see_other_data():
    text, images = (
        tiny().evaluation,
        data.Images(*[(torch.arange(9.0).view(9, 1, 1, 1), torch.arange(9))] * 3),
    )
    (one, _), (other, _) = next(text("test", 3)), next(text("test", 3, first=1))
    assert not torch.equal(one, other)
    labels = [y.tolist() for _, y in images.evaluation("test", 4, 3, first=7)]
    assert labels == [[7, 8, 0], [1]]


def test_the_rate_of_a_budgeted_run_falls_to_zero_where_the_budget_ends(tmp_path: Path, monkeypatch):
    rates, step = [], BudgetedTrainer._train_step
    monkeypatch.setattr(
        BudgetedTrainer, "_train_step", lambda self, at, rate: (rates.append(rate), step(self, at, rate))
    )
    end = budgeted(tmp_path)["ends"][-1]
    rates = rates[-end["steps"] :]
    assert max(rates) == 1.0
    assert 0 <= rates[-1] < 0.2
    falling = rates[rates.index(1.0) :]
    assert falling == sorted(falling, reverse=True)


def test_a_fixed_size_has_its_evaluations_inside_of_the_budget_where_growth_has():
    protocol = replace(PROTOCOLS["unknown"], scales={"gpt": SCALE})
    for name, arm in arms(protocol, "gpt").items():
        if arm.fixed:
            task = replace(tiny(), scale=replace(SCALE, steps=200))
            record = Trainer(Run("gpt", name, 3, 0.003), arm, task, Path("unused")).totals
            one = task.step_flops(arm.depth)
            for share, steps in zip(SCALE.fixed_ends, record, strict=True):
                evaluations = task.forward_flops(arm.depth) * (4 * 4 + 6)
                room = share * 200 * task.step_flops(8) - steps * one - evaluations
                assert 0 <= room < one + 4 * 4 * task.forward_flops(arm.depth), name


# Between the ends of a curve


def curve(*points: tuple[float, float, float]) -> Curve:
    """(share, FLOPs, loss); seconds are a tenth of the FLOPs."""
    return Curve(tuple(End(share, flops, flops / 10, loss, loss, flops) for share, flops, loss in points))


def test_losses_are_linear_in_the_logarithm_of_the_cost_and_not_known_outside():
    found = curve((0.3, 1.0, 3.0), (0.6, 100.0, 2.0), (1.0, 400.0, 1.0))
    assert found.loss_at(1.0) == 3.0
    assert found.loss_at(10.0) == pytest.approx(2.5)
    assert found.loss_at(200.0) == pytest.approx(1.5)
    assert found.loss_at(20.0, "seconds") == pytest.approx(1.5)
    assert found.loss_at(0.9) is None
    assert found.loss_at(401.0) is None
    assert found.cost_of(2.5) == pytest.approx(10.0)
    assert found.cost_of(1.0) == pytest.approx(400.0)
    assert found.cost_of(3.5) == 1.0  # an upper bound: it was there at its first end already
    assert found.cost_of(0.99) is None


@given(st.lists(st.floats(0.1, 1.0), min_size=2, max_size=5), st.floats(0.0, 1.0))
def test_cost_is_the_inverse_of_loss(falls, part):
    losses = [10.0 - sum(falls[:at]) for at in range(len(falls))]
    found = curve(*((at, 2.0**at, loss) for at, loss in enumerate(losses)))
    cost = 2.0 ** (part * (len(falls) - 1))
    assert found.cost_of(found.loss_at(cost)) == pytest.approx(cost)


def test_standard_errors_are_those_of_the_mean():
    assert estimate([1.0, 2.0, 3.0]).mean == 2.0
    assert estimate([1.0, 2.0, 3.0]).standard_error == pytest.approx(1 / math.sqrt(3))
    assert estimate([4.0]).standard_error is None


# The questions, on records whose answers are known


def record(arm: str, seed: int, *ends: tuple[float, float, float], tuning: bool = False, rate: float = 0.003):
    """(share, FLOPs, loss) for each end; seconds are a tenth of the FLOPs."""
    return {
        "run": {"workload": "gpt", "arm": arm, "seed": seed, "rate": rate, "tuning": tuning},
        "environment": {},
        "ends": [
            {"share": share, "steps": 1, "validation": loss, "test": loss, "accuracy": 0.0,
             "flops": {"train": flops}, "seconds": {"train": flops / 10}}
            for share, flops, loss in ends
        ],
    }  # fmt: skip


PROTOCOL = replace(PROTOCOLS["short"], scales={"gpt": replace(SCALE, depths=(1, 2, 8))}, seeds=(0, 1))
MADE = [
    record("fixed-1", 0, (0.3, 30, 2.0), (0.6, 60, 1.9), (1.0, 100, 1.8)),
    record("fixed-2", 0, (0.3, 30, 2.2), (0.6, 60, 1.7), (1.0, 100, 1.5)),
    record("fixed-2", 1, (0.3, 30, 2.2), (0.6, 60, 1.72), (1.0, 100, 1.5)),
    record("fixed-8", 0, (0.3, 30, 2.6), (0.6, 60, 2.0), (1.0, 100, 1.6)),
    record("fixed-8", 1, (0.3, 30, 2.6), (0.6, 60, 2.0), (1.0, 100, 1.6)),
    record(PRIMARY, 0, (0.8, 40, 1.8), (1.0, 60, 1.6), (1.3, 90, 1.4)),
    record(PRIMARY, 1, (0.8, 40, 1.6), (1.0, 60, 1.6), (1.3, 90, 1.4)),
]


def made(*records: dict[str, object]) -> Arms:
    return Arms(PROTOCOL, "gpt", {results.run_of(each).name: each for each in records or MADE})


def test_the_share_of_the_large_network_is_taken_for_each_random_seed():
    found = share_of_large(made(), PRIMARY, "flops")
    assert found["values"] == pytest.approx([0.6, 0.4])
    assert found["mean"] == pytest.approx(0.5)
    assert found["standard_error"] == pytest.approx(0.1)
    assert share_of_large(made(), PRIMARY, "seconds")["mean"] == pytest.approx(0.5)


def test_a_loss_that_one_random_seed_misses_is_not_reached_and_the_gap_is_reported():
    missed = record(PRIMARY, 1, (0.8, 40, 1.9), (1.0, 60, 1.8), (1.3, 90, 1.7))
    found = share_of_large(made(*MADE[:-1], missed), PRIMARY, "flops")
    assert found["mean"] is None
    assert found["reached"] == "1 of 2"
    assert found["gap"]["values"] == pytest.approx([-0.2, 0.1])


def test_the_control_is_the_smaller_network_that_gets_there_first():
    found = best_smaller_share(made())
    expected = [60 * (100 / 60) ** (fall / total) / 100 for fall, total in ((0.1, 0.2), (0.12, 0.22))]
    assert found["arm"] == "fixed-2"
    assert found["values"] == pytest.approx(expected, abs=1e-5)


def test_the_envelope_is_the_best_fixed_size_at_equal_flops_paired_by_random_seed():
    found = below_envelope(made(), PRIMARY)
    assert found["best_fixed"] == "fixed-2"  # fixed-1 has one random seed only, and is worse
    assert found["values"] == pytest.approx([0.1, 0.12])
    assert found["standard_error"] == pytest.approx(0.01)


def test_an_unknown_size_costs_growth_over_the_sweep():
    found = unknown_size(made(), PRIMARY)
    cost = 60 * (90 / 60) ** ((1.6 - 1.515) / 0.2)
    assert found["best_fixed"] == "fixed-2"
    assert found["over_the_sweep"] == pytest.approx(cost / 300, abs=1e-4)
    assert found["cheap_sweep_chose"] == "fixed-1"  # which is best early, and not later
    assert found["cheap_sweep_misses_best_by"] == pytest.approx(0.2)
    assert found["over_the_cheap_sweep"] == pytest.approx(cost / 190, abs=1e-4)
    every = itertools.product(["fixed-1", "fixed-2", "fixed-8", PRIMARY], (1, 2, 3))
    tuned = [record(arm, 100, (1.0, 10, 2.0), tuning=True, rate=rate) for arm, rate in every]
    found = unknown_size(made(*MADE, *tuned), PRIMARY)
    assert found["over_the_sweep_with_learning_rates"] == pytest.approx((cost + 30) / (300 + 90), abs=1e-4)


def test_something_helps_if_it_is_lower_by_more_than_its_error_and_by_more_than_a_little():
    control = [record("deepen-1-2", seed, (1.0, 100, 1.5 + seed / 10)) for seed in (6, 7, 8)]
    differences = {
        "copy": (-0.02, -0.021, -0.022),  # helps
        "random": (-0.02, 0.02, -0.03),  # within its error
        "start": (-0.003, -0.0031, -0.0032),  # too little
        "lower": (0.1, 0.1, 0.1),
    }
    others = [
        record(f"deepen-1-2-{name}", seed, (1.0, 110, 1.5 + seed / 10 + difference))
        for name, each in differences.items()
        for seed, difference in zip((6, 7, 8), each, strict=True)
    ]
    records = {results.run_of(each).name: each for each in (*control, *others)}
    found = tried.answers(Arms(PROTOCOLS["tried"], "gpt", records))
    assert list(found) == ["deepen-1-2", *(f"deepen-1-2-{name}" for name in differences)]
    assert [found[f"deepen-1-2-{name}"]["helps"] for name in differences] == [True, False, False, False]
    assert found["deepen-1-2-copy"]["over_the_control"]["mean"] == pytest.approx(-0.021)
    assert found["deepen-1-2-copy"]["flops"] == 1.1
    first, *rows = tried.table(found)[2:]
    assert first.startswith("| deepen-1-2-copy | 2.1790 ± 0.0572 | -0.0210 ± 0.0006 | 1.100 | 3 | yes |")
    assert [row.split(" | ")[-1] for row in rows] == ["no |", "no |", " |", "no |"]
    fixed = [record("fixed-2", seed, (0.834, 120, 1.52 + seed / 10)) for seed in (9, 10, 11)]
    grown = [
        record(name, seed, (1.0, 132, loss + seed / 10))
        for name, loss in (("deepen-1-2", 1.51), ("deepen-1-2-copy", 1.5))
        for seed in (9, 10, 11)
    ]
    records = {results.run_of(each).name: each for each in (*fixed, *grown)}
    found = tried.answers(Arms(PROTOCOLS["tried_again"], "gpt", records))
    assert list(found) == ["deepen-1-2", "deepen-1-2-copy"]
    best = found["deepen-1-2-copy"]["below_best_fixed"]
    assert (best["best_fixed"], best["mean"], best["flops_ratio"]) == ("fixed-2", 0.02, 1.1)
    assert tried.table(found)[2].endswith("| 0.0200 ± 0.0000 (fixed-2, 1.100) |")
    lower = [record("fixed-2", seed, (0.834, 120, 1.505 + seed / 10)) for seed in (9, 10, 11)]
    control = Arms(PROTOCOLS["tried_control"], "gpt", {results.run_of(each).name: each for each in lower})
    found = tried.answers(Arms(PROTOCOLS["tried_again"], "gpt", records), control)
    assert found["deepen-1-2"]["below_lower_rate"]["mean"] == pytest.approx(-0.005)
    assert tried.table(found)[2].endswith("(fixed-2, 1.100) | 0.0050 ± 0.0000 (0.0021) |")


# The second experiment, on records whose answers are known

UNKNOWN = replace(
    PROTOCOLS["unknown"],
    scales={"gpt": replace(SCALE, depths=(1, 2), fixed_ends=(0.35, 0.834, 1.0))},
    seeds=(3, 4),
)
SECOND = [
    record("fixed-1", 3, (0.35, 35, 1.9), (0.834, 83, 1.82), (1.0, 100, 1.8)),
    record("fixed-1", 4, (0.35, 35, 1.9), (0.834, 83, 1.82), (1.0, 100, 1.8)),
    record("fixed-2", 3, (0.35, 35, 2.2), (0.834, 83, 1.6), (1.0, 100, 1.5)),
    record("fixed-2", 4, (0.35, 35, 2.2), (0.834, 83, 1.6), (1.0, 100, 1.52)),
    record("grow", 3, (0.35, 35, 1.88), (1.0, 98, 1.48)),
    record("grow", 4, (0.35, 35, 1.86), (1.0, 98, 1.48)),
    record("deepen-1-2", 3, (0.6, 40, 1.7), (1.0, 82, 1.57)),
    record("deepen-1-2", 4, (0.6, 40, 1.7), (1.0, 82, 1.61)),
]


def second() -> Arms:
    return Arms(UNKNOWN, "gpt", {results.run_of(each).name: each for each in SECOND})


def test_growth_is_compared_with_the_best_size_of_the_same_budget_and_nothing_is_interpolated():
    found = below_best(second(), "grow", 1.0, 1.0)
    assert found["best_fixed"] == "fixed-2"
    assert found["values"] == pytest.approx([0.02, 0.04])
    assert found["flops_ratio"] == 0.98
    assert below_best(second(), "grow", 0.35, 0.35)["best_fixed"] == "fixed-1"
    assert below_best(second(), "deepen-1-2", 1.0, 0.834)["values"] == pytest.approx([0.03, -0.01])


def test_a_size_that_has_not_all_random_seeds_is_no_best_one():
    arms_of = Arms(
        UNKNOWN, "gpt", {results.run_of(each).name: each for each in SECOND if each is not SECOND[3]}
    )
    assert below_best(arms_of, "grow", 1.0, 1.0)["best_fixed"] == "fixed-1"


def test_the_answers_of_the_second_experiment():
    found = unknown.answers(second(), made())
    shares = [35 * (98 / 35) ** ((start - 1.6) / (start - 1.48)) / 100 for start in (1.88, 1.86)]
    assert found["share_of_flops"] == pytest.approx(sum(shares) / 2, abs=1e-5)
    size = found["unknown_size"]
    assert size["best_fixed"] == "fixed-2"
    goal = 1.01 * 1.51
    cost = 35 * (98 / 35) ** ((1.87 - goal) / (1.87 - 1.48))
    assert found["cost_of_unknown_size"] == pytest.approx(cost / 300, abs=1e-4)  # two here, the large there
    assert size["over_the_cheap_sweep"] == pytest.approx(cost / (35 + 35 + 30 + 100), abs=1e-4)
    assert size["cheap_sweep_chose"] == ["fixed-1"]
    assert size["cheap_sweep_minus_growth"]["mean"] == pytest.approx(0.32)
    assert size["guess_blindly_minus_growth"]["mean"] == pytest.approx(
        (1.8 + 1.51 + 1.6) / 3 - 1.48, abs=1e-5
    )
    assert size["fixed-2_minus_growth"]["mean"] == pytest.approx(0.03)


def test_a_control_that_was_added_is_paired_by_random_seed():
    protocol = replace(UNKNOWN, scales={"gpt": replace(SCALE, depths=(2,), rates=(0.001,))})
    runs = [
        record("fixed-2", seed, (0.35, 35, 1.85), (1.0, 100, loss), rate=0.001)
        for seed, loss in ((3, 1.46), (4, 1.42))
    ]
    extra = Arms(protocol, "gpt", {results.run_of(each).name: each for each in runs})
    found = unknown.added_control(second(), extra)
    assert (found["arm"], found["learning_rate"], found["random_seeds"]) == ("fixed-2", 0.001, [3, 4])
    assert found["below_it_at"]["1.0"]["values"] == pytest.approx([-0.02, -0.06])
    assert found["above"]["1.0"] == pytest.approx(1.48 / 1.44 - 1, abs=1e-4)
    assert unknown.added_control(second(), Arms(protocol, "gpt", {})) is None


# Which runs there are


def _plan(*records: dict[str, object], rates: tuple[float, ...] = (1.0, 2.0, 4.0)) -> Plan:
    protocol = replace(PROTOCOL, scales={"gpt": replace(PROTOCOL.scales["gpt"], rates=rates)})
    return Plan(protocol, "gpt", {results.run_of(each).name: each for each in records})


def _tuned(arm: str, losses: dict[float, float]) -> list[dict[str, object]]:
    return [
        record(arm, PROTOCOL.tuning_seed, (1.0, 1, loss), tuning=True, rate=rate)
        for rate, loss in losses.items()
    ]


def test_the_learning_rate_is_the_best_of_its_runs_and_one_beyond_the_edge_is_tried():
    arm = _plan().arms["fixed-2"]
    assert _plan().rate(arm) is None
    assert _plan(*_tuned("fixed-2", {1.0: 3, 2.0: 1, 4.0: 2})).rate(arm) == 2.0
    at_the_edge = _plan(*_tuned("fixed-2", {1.0: 3, 2.0: 2, 4.0: 1}))
    assert at_the_edge.rate(arm) is None
    assert Run("gpt", "fixed-2", PROTOCOL.tuning_seed, 8.0, True) in at_the_edge.missing()
    assert _plan(*_tuned("fixed-2", {1.0: 3, 2.0: 2, 4.0: 1, 8.0: 0.5})).rate(arm) == 8.0
    assert _plan(*_tuned("fixed-2", {0.5: 1.5, 1.0: 1, 2.0: 2, 4.0: 1.1})).rate(arm) == 1.0
    assert _plan(*_tuned("fixed-2", {1.0: 3, 2.0: float("nan"), 4.0: 4, 0.5: 5})).rate(arm) == 1.0


def test_the_finalists_are_the_large_the_two_best_at_the_cost_of_growth_and_the_best_of_all():
    plan = Plan(PROTOCOL, "gpt", {results.run_of(each).name: each for each in MADE})
    assert plan.finalists() == ["fixed-8", "fixed-2", "fixed-1", PRIMARY, "deepen-2-4-8", "gstack-2-8"]
    assert _plan(*MADE[1:]).finalists()[0] == PRIMARY  # a fixed size is missing


def test_other_random_seeds_are_never_used_to_choose():
    for name, protocol in PROTOCOLS.items():
        assert protocol.tuning_seed not in protocol.seeds, name


@pytest.mark.parametrize("protocol", ["short", "full"])
def test_all_changes_come_before_the_first_decay(protocol):
    for workload in PROTOCOLS[protocol].scales:
        for arm in arms(PROTOCOLS[protocol], workload).values():
            assert all(at <= 0.8 * min(arm.ends) for at, _ in arm.changes), arm.name


# Data, and what is committed


def test_files_are_split_by_their_names_and_missing_data_says_what_to_do(tmp_path: Path, monkeypatch):
    parts = [data.part_of(f"core/{at}.py") for at in range(2000)]
    assert 0.87 < parts.count("train") / 2000 < 0.93
    assert set(parts) == set(data.PARTS)
    monkeypatch.setattr(prepare, "FOLDER", tmp_path)
    monkeypatch.setattr(prepare, "INSTALLED", tmp_path)
    with pytest.raises(prepare.DataError, match=r"run python -m benchmarks\.worth\.prepare"):
        prepare.fashion_folder()


def test_batches_depend_on_random_seed_and_step_alone():
    first, again, other = (tiny().batch(*at) for at in ((0, 3), (0, 3), (1, 3)))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[0][:, 1:], first[1][:, :-1])
    images = torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8)
    part = (images, torch.arange(9))
    x, y = data.Images(part, part, part).batch(0, 0, 500)
    whole, label = next(iter(data.Images(part, part, part).evaluation("test", 9, 9)))
    assert x.shape == (500, 1, 28, 28)
    kept = [
        (one.flip(-1) == whole[at]).all() or (one == whole[at]).all() for one, at in zip(x, y, strict=True)
    ]
    assert 0 < sum(map(bool, kept)) < 500  # those that were shifted by nothing
    assert label.tolist() == list(range(9))


@pytest.mark.parametrize("protocol", results.KEPT)
def test_the_committed_runs_are_named_for_what_they_are(protocol):
    folder = results.folder(PROTOCOLS[protocol], COMMITTED)
    assert results.read(folder).keys() == {path.stem for path in folder.iterdir()}


def test_the_committed_summary_is_what_the_committed_runs_say():
    told = json.loads((COMMITTED / summary.FILE).read_text(encoding="utf-8"))
    found = summary.experiments(PROTOCOLS[told["protocol"]], COMMITTED)
    assert told["workloads"].keys() == found.keys() | set(experiments.ELSEWHERE)
    for name, each in found.items():
        assert json.loads(json.dumps(summary.answers(each))) == told["workloads"][name]
    for name, answers in summary.what_was_tried(COMMITTED).items():
        assert json.loads(json.dumps(answers)) == told[name]
