"""A seed that nothing trains is told of, once; one that is trained is not."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.optimizers.progress import PATIENCE
from fxgraft.telemetry import Memory

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class OverData(torch.optim.SGD):
    """Writes as optimizers did before ``no_grad``: no version of a parameter changes."""

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-group["lr"])


def _train(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer | None],
    remake: bool = False,
    through: Callable[[nn.Module, nn.Module], nn.Module] = lambda host, model: host,
    seed: str | nn.Module = "mlp",
    steps: int = 2 * PATIENCE,
) -> list[str]:
    """Train for some steps; return the reasons of the events ``seed_stalled``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    other = copy.deepcopy(model)
    host = fxgraft.trace(model, (X,))
    trains, memory = optimizer(host), Memory()
    manager = fxgraft.SeedManager(host, trains, sinks=[memory])
    manager.germinate("0", seed)
    stepped = torch.optim.SGD(other.parameters(), 0.1) if remake or trains is None else trains
    for _ in range(steps):
        loss: Tensor = through(host, other)(X).square().mean()
        loss.backward()
        stepped.step()
        stepped.zero_grad()
        manager.step(loss.detach())
    return [event.data["reason"] for event in memory.events if event.kind == "seed_stalled"]


def _sgd(host: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(host.parameters(), 0.1)


def test_no_optimizer(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fxgraft"):
        (reason,) = _train(lambda host: None)
    assert "the manager was made without one" in reason
    assert [record.getMessage() for record in caplog.records] == [f"seed 'mlp_at_0' at slot '0': {reason}"]


def test_another_optimizer_is_stepped() -> None:
    (reason,) = _train(_sgd, remake=True)
    assert "step() of the optimizer that the manager was made with" in reason


def test_the_loop_calls_the_model_itself() -> None:
    (reason,) = _train(_sgd, through=lambda host, model: model)
    assert "Expected calls of the host (not of the model it was traced from)" in reason


@pytest.mark.parametrize(
    "optimizer",
    [_sgd, lambda host: torch.optim.AdamW(host.parameters(), 1e-5), lambda h: OverData(h.parameters(), 0.1)],
)
def test_a_trained_seed_is_not_told_of(optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    assert _train(optimizer) == []


def test_a_seed_without_anything_to_train_is_not_told_of() -> None:
    assert _train(_sgd, seed=nn.Linear(5, 5).requires_grad_(False)) == []


def test_not_before_its_time() -> None:
    assert _train(lambda host: None, steps=PATIENCE - 1) == []
    assert len(_train(lambda host: None, steps=PATIENCE)) == 1
