"""Germinate and cull in the middle of every learning-rate schedule that torch has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import fxgraft
from tests.harness import traced_plan, train
from tests.optimizers.test_optimizer import PLAN, SLOT, split_groups


def _sequential(o: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.ConstantLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    return lr_scheduler.SequentialLR(o, parts, milestones=[4])


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda i: 0.9**i, lambda i: 0.8**i]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, [lambda i: 0.9, lambda i: 0.8]),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": _sequential,
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 12),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=20),
}


def test_every_scheduler_of_torch_is_tried() -> None:
    every = {
        name
        for name, found in vars(lr_scheduler).items()
        if inspect.isclass(found) and issubclass(found, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert every - {"LRScheduler"} == set(SCHEDULERS)


@pytest.mark.parametrize("passed_on", [False, True], ids=["unknown to the manager", "passed to the manager"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_germinate_and_cull_in_mid_schedule(name: str, passed_on: bool) -> None:
    """The rates of the host's groups and its weights are those of a run without any seed."""

    def run(grow: bool) -> tuple[Any, list[list[float]]]:
        host = traced_plan(PLAN)
        optimizer = torch.optim.SGD(split_groups(host), 1e-2, momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        manager = fxgraft.SeedManager(host, optimizer, schedulers=[scheduler] if passed_on else [])
        rates: list[list[float]] = []

        def after(i: int) -> None:
            manager.step()
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
            if grow and i in (3, 5):
                manager.germinate(SLOT, lambda slot: nn.Linear(4, 4), name=f"s{i}")
            if grow and i == 7:
                manager.cull("s3")

        return train(host, optimizer, [PLAN.batch(i) for i in range(12)], after), rates

    expected, host_rates = run(grow=False)
    grown, rates = run(grow=True)
    grown.assert_same(expected)
    assert rates == host_rates
