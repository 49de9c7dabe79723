"""A number that was set after tracing is told of, where code runs that has what it was."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

import fxgraft

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale, self.rate = nn.Linear(4, 4), 1.0, float("nan")

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale


class Branching(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (self.scale if x.sum() > 1e9 else 2 * self.scale)


class Nested(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.head, self.temperature = block, nn.Linear(4, 2), 1

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)) / self.temperature


class Around(Nested):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)) * (1 if x.sum() > 1e9 else 2)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "after tracing" in record.getMessage()]


def test_a_germination_says_what_its_code_has(caplog: pytest.LogCaptureFixture) -> None:
    host = fxgraft.trace(Nested(Scaled()), (X,))
    manager = fxgraft.SeedManager(host)
    host.block.scale, host.temperature = 2.0, 3
    with caplog.at_level(logging.WARNING, "fxgraft"):
        manager.germinate("block.inner", "mlp")
        manager.germinate("block", "mlp")
    first, second = _warnings(caplog)
    assert "expected in block, (type(self.scale) is float and self.scale == 1.0). Trace again" in first
    assert "in the model, (type(self.temperature) is int and self.temperature == 1)" in second
    assert "scale" not in second  # the seed behind the block does not stand in its code


def test_without_a_change_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    host = fxgraft.trace(Nested(Scaled()), (X,))
    host.block.scale, host.block.new = 1.0, 7
    host.eval()
    host.block.register_full_backward_hook(lambda *_: None)
    other = copy.deepcopy(host)
    with caplog.at_level(logging.WARNING, "fxgraft"):
        fxgraft.SeedManager(host).germinate("block.inner", "mlp")
        fxgraft.SeedManager(other).germinate("block.inner", "mlp")
    assert _warnings(caplog) == []


def test_code_that_has_no_graph_is_the_modules_own(caplog: pytest.LogCaptureFixture) -> None:
    host = fxgraft.trace(Around(Branching()), (X,))
    assert {"", "block"} <= host.opaque.keys()
    manager = fxgraft.SeedManager(host)
    host.block.scale = 5.0
    before = host(X)
    with caplog.at_level(logging.WARNING, "fxgraft"):
        manager.germinate("block", "mlp")
    assert _warnings(caplog) == []
    assert torch.equal(host(X), before)


def test_what_is_set_under_a_seed_is_no_violation(caplog: pytest.LogCaptureFixture) -> None:
    model = Scaled()
    host = fxgraft.trace(model, (X,))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1), strict=True, check_every=1)
    manager.germinate("inner", "mlp")
    host.scale = model.scale = 2.0
    manager.monitor.look_soon()
    out = host(X)
    assert torch.equal(out, model(X))
    out.sum().backward()
    manager.step()
    assert manager.monitor.checks == 1
    assert manager.monitor.violations == 0
    assert "self.scale == 1.0" in caplog.text
