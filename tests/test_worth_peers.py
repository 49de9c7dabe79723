"""The arms of `benchmarks.worth` that are made with other libraries, and growth in width, on few steps."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.worth import __main__ as command
from benchmarks.worth import by_gromo, data, peers, running, summary
from benchmarks.worth.arm import Arm
from benchmarks.worth.arms import arms
from benchmarks.worth.budgeted import BudgetedTrainer
from benchmarks.worth.learner import LibraryError
from benchmarks.worth.learners import KINDS, Setting
from benchmarks.worth.models import GPT, MLP
from benchmarks.worth.protocols import PROTOCOLS, Scale
from benchmarks.worth.training import Ledger, Run
from benchmarks.worth.workloads import Workload
from fxgraft.util.bits import same_bits

COMMITTED = Path(command.COMMITTED)
SCALE = Scale(60, 4, 8, (1, 2), (1.0,), (0.003,), validation=4, test=6, points=4)
WIDE = arms(PROTOCOLS["widths"], "mlp")
ADAPTED = arms(PROTOCOLS["adapters"], "gpt")


def characters() -> Workload:
    codes = torch.randint(11, (500,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    text = data.Text(codes, codes, codes)
    make = partial(GPT, vocabulary=11, context=8, width=8, hidden=16)
    batch, evaluation = partial(text.batch, size=4, context=8), partial(text.evaluation, size=3, context=8)
    return Workload("gpt", SCALE, make, batch, evaluation, decay=0.1)


def images() -> Workload:
    draw = torch.Generator().manual_seed(0)
    part = (
        torch.randint(256, (200, 1, 28, 28), generator=draw, dtype=torch.uint8),
        torch.randint(10, (200,), generator=draw),
    )
    found = data.Images(part, part, part)
    batch, evaluation = partial(found.batch, size=8), partial(found.evaluation, size=4)
    return Workload("mlp", SCALE, MLP, batch, evaluation, decay=0.05)


def end_of(arm: Arm, task: Workload, scratch: Path) -> dict[str, object]:
    record = BudgetedTrainer(Run(task.name, arm.name, 0, 0.003), arm, task, scratch).train()
    (end,) = record["ends"]
    spent = sum(end["flops"].values())
    if arm.how in ("adapt", "wider"):  # what others compute to grow is more than so few steps cost
        assert 0.9 <= spent / (SCALE.steps * task.step_flops(8)) <= 1.0
    return {**end, "parameters": record["parameters"]}


@pytest.mark.parametrize("arm", ADAPTED.values(), ids=list(ADAPTED))
def test_a_frozen_host_stays_as_it_is_and_costs_less_while_adapters_learn(arm: Arm):
    learner = KINDS["adapt"](Setting(characters(), arm, 0, 0.006, 10))
    learner.allow(1000)
    rates, kept = [], []
    for step, spent in enumerate((0, 300, 380, 400, 900)):
        learner.ledger = Ledger()
        learner.ledger.flops["train"] = spent
        learner.begin(step)
        learner.ledger.flops["change"] = 0
        learner.step(characters().batch(0, step), 1.0)
        rates.append(learner.optimizers[0].param_groups[0]["lr"])
        kept.append({name: p.detach().clone() for name, p in learner.model.named_parameters()})
    host = arm.options["host_rate"]
    decayed = host * 0.25 if arm.options["host_decays"] else host
    assert rates == pytest.approx([host, host, decayed, 0.006, 0.006])
    for name, now in kept[-1].items():
        assert same_bits(now, kept[-2][name]) == ("lora_" not in name), name
    assert learner.told()["adapters"] == sum(p.numel() for n, p in kept[-1].items() if "lora_" in n)


def test_adapters_end_within_the_budget(tmp_path: Path):
    arm = ADAPTED["lora-1"]
    end = end_of(replace(arm, options={**arm.options, "rank": 1}), characters(), tmp_path)
    assert end["blocks"] == 1
    assert end["adapters"] > 0


@pytest.mark.parametrize("name", ["widen-1-8", "stepped-8", "autogrow-anything"])
def test_widths_come_at_shares_of_the_budget(name: str, tmp_path: Path):
    task = images()
    end = end_of(WIDE[name], task, tmp_path)
    if name != "autogrow-anything":  # so few steps are no time at all
        assert end["parameters"] == sum(p.numel() for p in MLP(8).parameters())
        assert end["blocks"] == 8


@pytest.fixture
def gromo():
    """The library, of the extra `bench`; nothing of fxgraft depends on it."""
    assert by_gromo.metadata.version("gromo") == by_gromo.VERSION
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        yield


@pytest.mark.parametrize("name", ["gromo-1-8", "gromo-1-8-free"])
def test_gromo_grows_to_the_same_widths(name: str, tmp_path: Path, gromo):
    arm, task = WIDE[name], images()
    end = end_of(replace(arm, options={**arm.options, "batches": 1}), task, tmp_path)
    assert end["parameters"] == sum(p.numel() for p in MLP(8).parameters())
    assert (end["flops"]["change"] > 0) == arm.options["charged"]


def test_gromo_begins_with_the_same_network(gromo):
    model, (x, _) = MLP(2), images().batch(0, 0)
    torch.testing.assert_close(by_gromo.growing(model)(x), model(x))


def test_without_the_library_its_runs_are_left_out_and_it_is_said_how_to_install_it(
    tmp_path: Path, monkeypatch, capsys
):
    def absent(name: str) -> str:
        raise by_gromo.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(by_gromo.metadata, "version", absent)
    with pytest.raises(LibraryError, match=r"pip install gromo==0\.1\.0"):
        by_gromo.growing(MLP(1))
    protocol = replace(PROTOCOLS["widths"], scales={"mlp": SCALE})
    runner = running.Runner(protocol, images(), tmp_path, tmp_path, {})
    runner.run_all(lambda: [Run("mlp", "gromo-1-8", 21, 0.003)])
    assert (runner.failed, runner.left_out) == ([], ["mlp-gromo-1-8-lr0.003-seed21"])
    assert "gromo-1-8-lr0.003-seed21 is left out. It needs gromo" in capsys.readouterr().out


def test_the_table_has_every_arm_that_has_run():
    found = summary.other_libraries(COMMITTED)
    for of in found.values():
        assert len(peers.table(of)) == 2 + len(of)
