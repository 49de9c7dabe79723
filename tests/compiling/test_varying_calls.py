"""Calls in which numbers or sizes are always other ones: few graphs, and tables that end."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import Stage
from fxgraft.compiling import _running_unit
from fxgraft.host import engine
from fxgraft.testing import no_recompiles
from tests.harness import assert_same_bits, counting_backend, frozen
from tests.seed_modules import Scale

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor, t: float) -> Tensor:
        return self.block(x) * t


def timed(backend: Any) -> tuple[fxgraft.Host, fxgraft.SeedManager]:
    host = fxgraft.trace(Timed(), (torch.randn(3, 4), 0.5))
    host.compile(backend=backend)
    return host, fxgraft.SeedManager(host)


@pytest.mark.parametrize("kind", [int, float])
def test_a_number_that_varies_makes_two_graphs_for_each_forward(kind: type) -> None:
    backend = counting_backend()
    host, manager = timed(backend)
    x = torch.randn(3, 4)
    for i in range(10):
        host(x, kind(i)).sum().backward()
    assert backend.frame_count == 2
    manager.germinate("block.1", Scale(), name="a")
    with no_recompiles():
        for i in range(10):
            host(x, kind(i + 20)).sum().backward()
    assert backend.frame_count == 4  # once each: it is known by now that the number varies


@pytest.mark.parametrize("kind", [int, float])
def test_in_the_background_a_number_that_varies_goes_live(kind: type) -> None:
    host, manager = timed("aot_eager")
    x = torch.randn(3, 4)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        host(x, kind(steps)).sum().backward()
        manager.step()

    for _ in range(4):
        step()
    with no_recompiles():
        seed = manager.germinate("block.1", Scale(), name="a", wait=False)
        while seed.stage is Stage.GERMINATED:
            manager._background.wait(60)
            step()
        manager.blend(seed, to=0.5, steps=1)
        for _ in range(10):
            step()
    with engine.probing(host, host.structure, host.phase) as model:
        expected = frozen(model(x, kind(steps)))
    assert_same_bits(frozen(host(x, kind(steps))), expected, "the host")
    assert fxgraft.compile_report(host).uncompiled_calls == 0


def test_a_number_that_begins_to_vary_after_it_is_live_is_made_dynamic_then() -> None:
    host, manager = timed("aot_eager")
    x = torch.randn(3, 4)
    host(x, 0.5).sum().backward()
    seed = manager.germinate("block.1", Scale(), name="a", wait=False)
    while seed.stage is Stage.GERMINATED:
        manager._background.wait(60)
        manager.step()
    with no_recompiles():
        for i in range(60):
            host(x, float(i)).sum().backward()
            manager._background.wait(60)
            manager.step()
    report = fxgraft.compile_report(host)
    assert 0 < report.uncompiled_calls < 12
    assert max(row.artifacts for row in report.variants) == 2


def test_tables_end_over_20_000_calls_of_ever_new_numbers_and_shapes() -> None:
    host = fxgraft.trace(Timed(), (torch.randn(3, 4), 0.5))
    host.compile(backend="eager")

    def calls(begin: int, end: int) -> None:
        with torch.no_grad():
            for i in range(begin, end):
                host(zeros[: 2 + i // 8], 0.5 + i)

    zeros = torch.zeros(2502, 4)
    calls(0, 3000)
    gc.collect()
    before = len(gc.get_objects())
    calls(3000, 20_000)
    gc.collect()
    assert len(gc.get_objects()) - before < 500
    report = fxgraft.compile_report(host)
    assert report.graphs <= 6
    assert report.uncompiled_calls == 0


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))

    def forward(self, x: Tensor, t: float) -> Tensor:
        for block in self.blocks:
            x = block(x) * t
        return x


def test_tables_end_over_thousands_of_steps_with_seeds_that_come_and_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By region, with gradients, through `manager.step`; what changes is known after the first rounds."""
    monkeypatch.setattr(_running_unit, "MAX_FORMS", 16)  # they are full after the first rounds
    torch.manual_seed(0)
    host = fxgraft.trace(Blocks(), (torch.randn(3, 4), 0.5))
    host.compile(backend="aot_eager", granularity="region")
    optimizer = torch.optim.SGD(host.parameters(), 1e-6)
    manager = fxgraft.SeedManager(host, optimizer, helper="off")
    manager.germinate("blocks.0.1", Scale(), name="stays")
    zeros = torch.zeros(400, 4)
    step = 0

    def round_of_changes() -> None:
        nonlocal step
        manager.germinate("blocks.1.1", Scale(), name="comes")
        for i in range(200):
            if i == 100:
                manager.blend("comes", steps=20)
            step += 1
            optimizer.zero_grad()
            host(zeros[: 2 + step // 8 % 300], 0.5 + step % 7).sum().backward()
            optimizer.step()
            manager.step()
        manager.cull("comes")

    for _ in range(3):
        round_of_changes()
    gc.collect()
    before = len(gc.get_objects())
    graphs = fxgraft.compile_report(host).graphs
    for _ in range(10):
        round_of_changes()
    gc.collect()
    assert len(gc.get_objects()) - before < 500
    report = fxgraft.compile_report(host)
    assert report.graphs == graphs
    assert report.uncompiled_calls == 0
