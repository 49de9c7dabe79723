"""What Accelerate puts around optimizers and schedulers is not in the way of groups, warnings and files."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import lr_scheduler

import fxgraft
from fxgraft.optimizers.groups import OWNER
from tests.harness import assert_same_bits

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
WRAPPED = ("nothing", "optimizer", "scheduler", "both")
KINDS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "several": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.StepLR(o, 1)], milestones=[2]
    ),
}


class World:
    """A host in training, whose optimizer and scheduler are given to the manager wrapped or not."""

    def __init__(self, kind: str, wrapped: str):
        torch.manual_seed(0)
        self.host = fxgraft.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (X,))
        accelerator = Accelerator(cpu=True)
        plain = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.optimizer = accelerator.prepare(plain)
        # The Trainer makes the scheduler on the wrapped optimizer, other loops on the optimizer itself.
        self.scheduler: Any = KINDS[kind](self.optimizer if wrapped in ("optimizer", "both") else plain)
        prepared = accelerator.prepare(self.scheduler)
        self.given = (
            self.optimizer if wrapped in ("optimizer", "both") else plain,
            prepared if wrapped in ("scheduler", "both") else self.scheduler,
        )

    def train(self, manager: fxgraft.SeedManager, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.host(X).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            manager.step()


@pytest.mark.parametrize(("kind", "wrapped"), list(itertools.product(KINDS, WRAPPED)))
def test_own_hyper_parameters(
    kind: str, wrapped: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(kind, wrapped)
    optimizer, scheduler = world.given
    manager = fxgraft.SeedManager(world.host, optimizer, schedulers=[scheduler])
    manager.germinate("1", "mlp", name="a", hyper={"lr": 3e-2})
    for _ in range(4):
        world.train(manager, 1)
        first, own = world.optimizer.param_groups
        assert own[OWNER] == "a"
        assert own["lr"] == pytest.approx(3 * first["lr"])
    with caplog.at_level(logging.WARNING, logger="fxgraft"):
        manager.save(tmp_path / "run")
    assert not caplog.records, "the scheduler is saved"
    world.train(manager, 2)

    again = World(kind, "nothing")  # what is in the file does not depend on wrappers
    optimizer, scheduler = again.given
    other = fxgraft.SeedManager.load(tmp_path / "run", again.host, optimizer, schedulers=[scheduler])
    again.train(other, 2)
    assert_same_bits(dict(again.host.state_dict()), dict(world.host.state_dict()), "resumed and whole")
    other.cull("a")
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_scheduler_that_was_not_given_is_asked_for(
    wrapped: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World("lambda", wrapped)
    manager = fxgraft.SeedManager(world.host, world.given[0])
    with pytest.raises(ValueError, match=r"AdamW of seed .* schedulers="):
        manager.germinate("1", "mlp", hyper={"lr": 3e-2})
    with caplog.at_level(logging.WARNING, logger="fxgraft"):
        manager.save(tmp_path / "run")
    assert "scheduler of AdamW is not saved" in caplog.text
