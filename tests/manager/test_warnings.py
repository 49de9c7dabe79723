"""What is no error, and most likely not meant, is said in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import StageError
from fxgraft.telemetry import Memory
from tests.harness import warnings_in

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def grown(**options: Any) -> tuple[fxgraft.Host, torch.optim.Optimizer, SeedManager]:
    torch.manual_seed(0)
    host = fxgraft.trace(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), (X,))
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    return host, optimizer, SeedManager(host, optimizer, **options)


def test_a_scheduler_that_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host, optimizer, manager = grown()
    manager.save(tmp_path / "a")
    assert warnings_in(caplog) == []
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    manager.save(tmp_path / "b")
    manager.save(tmp_path / "b")
    assert warnings_in(caplog) == [
        f"{tmp_path / 'b'}: the learning-rate scheduler of SGD is not saved: expected it in "
        f"SeedManager(..., schedulers=[...])"
    ]
    caplog.clear()
    SeedManager(host, optimizer, schedulers=[scheduler]).save(tmp_path / "c")
    assert warnings_in(caplog) == []


def test_an_optimizer_of_another_model(caplog: pytest.LogCaptureFixture) -> None:
    host, *_ = grown()
    SeedManager(host, torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1))
    assert warnings_in(caplog) == [
        "the optimizer has no parameter of the host's: is it the one of another model?"
    ]


@pytest.mark.parametrize("is_zero", [False, True])
def test_a_measurement_of_a_seed_that_gives_nothing(is_zero: bool, caplog: pytest.LogCaptureFixture) -> None:
    host, _, manager = grown()
    module = nn.Linear(5, 5)
    if is_zero:
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    contribution = manager.measure(manager.germinate("0", module), lambda: host(X).square().mean())
    assert (contribution == 0) is is_zero
    assert (
        warnings_in(caplog)
        == [
            "seed 'Linear_at_0': the loss is the same with it and without, to the bit, though it ran: it "
            "gives nothing yet (it was trained in 0 steps)"
        ]
        * is_zero
    )


def test_a_shadow_seed_that_is_not_trained_in_its_shadow() -> None:
    memory = Memory()
    host, _, manager = grown(sinks=[memory])
    manager.germinate("0", "mlp", objective="shadow")
    for _ in range(20):
        host(X).sum().backward()
        manager.step()
    (event,) = memory.of_kind("seed_stalled")
    assert "Expected backward() inside manager.shadow() of a loss" in event.data["reason"]


def test_how_far_a_ramp_is_and_that_a_fossil_stays() -> None:
    host, _, manager = grown()
    seed = manager.germinate("0", "mlp", name="a")
    host(X)
    manager.blend(seed, steps=4, schedule="linear")
    manager.step()
    with pytest.raises(
        StageError, match=r"it is BLENDING \(alpha 0.25 after 1 of 4 steps; manager.step\(\) goes on"
    ):
        manager.fossilize(seed)
    for _ in range(3):
        manager.step()
    manager.fossilize(seed)
    with pytest.raises(StageError, match="a fossil is permanent"):
        manager.cull(seed)


def test_what_a_manager_is_in_a_notebook() -> None:
    _, _, manager = grown()
    assert repr(manager) == "SeedManager at step 0, no seeds"
    manager.germinate("0", "mlp")
    manager.step()
    assert repr(manager) == "SeedManager at step 1, 1 seed\n  Seed('mlp_at_0' at '0', TRAINING, alpha=0)"


def test_a_plan_names_the_seed_that_will_be() -> None:
    _, _, manager = grown()
    for _ in range(2):
        assert manager.plan("0", "mlp").name == manager.germinate("0", "mlp").name
    assert manager.plan("0", "mlp", name="b").name == "b"


@pytest.mark.parametrize(("loss", "got"), [("0.3", "str"), ({"loss": 1}, "dict"), ([0.1], "list")])
def test_a_loss_that_is_none(loss: Any, got: str) -> None:
    _, _, manager = grown(metrics_every=1)
    with pytest.raises(TypeError, match=rf"loss: expected a number, as in .*; got {got}"):
        manager.step(loss)
    assert manager.steps == 0
