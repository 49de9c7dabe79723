"""Seeds that are prepared off the training thread: GERMINATED until live, then as any other."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import StageError
from fxgraft.telemetry import Memory
from tests.harness import OperationRecord, assert_same_bits, frozen, loss_of, snapshot, traced_plan, train
from tests.seed_modules import Drawing
from tests.strategies import Plan

PLAN = Plan(("linear", "dropout_module", "batch_norm"))
SLOT = "body.linear0"
ROOT = Path(__file__).parents[2]


def grown(**options: Any) -> tuple[fxgraft.Host, Any, SeedManager]:
    torch.manual_seed(0)
    host = traced_plan(PLAN)
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    return host, optimizer, SeedManager(host, optimizer, **options)


class Gate:
    """A factory that waits until it may go on, and says which thread it ran in."""

    def __init__(self, build: Callable[[Any], nn.Module] = lambda slot: nn.Linear(4, 4)):
        self._build = build
        self.entered, self.open = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self, slot: fxgraft.Slot) -> nn.Module:
        self.thread = threading.current_thread()
        self.entered.set()
        assert self.open.wait(30)
        return self._build(slot)


def apply(manager: SeedManager) -> None:
    assert manager._background.wait(30)
    manager.step()


def test_until_it_is_live_the_host_is_the_very_same() -> None:
    host, optimizer, manager = grown()
    codes = {name: region.code for name, region in host.regions.items()}
    before = snapshot(host, PLAN.batch(1), [optimizer])
    forward = {name: region.module.__dict__.get("forward") for name, region in host.regions.items()}
    gate = Gate()
    seed = manager.germinate(SLOT, gate, name="a", wait=False)
    assert gate.entered.wait(30)
    for _ in range(3):
        manager.step()
        assert seed.stage is Stage.GERMINATED
        assert seed.module is None
    assert gate.thread is not threading.main_thread()
    assert_same_bits(snapshot(host, PLAN.batch(1), [optimizer]), before, "the host")
    assert {name: region.code for name, region in host.regions.items()} == codes
    for name, region in host.regions.items():
        assert region.module.__dict__.get("forward") is forward[name]
    assert list(manager.seed_parameters()) == []
    gate.open.set()
    apply(manager)
    assert seed.stage is Stage.TRAINING
    assert manager.seeds["a"] is seed
    assert len(list(manager.seed_parameters())) == 2


@pytest.mark.parametrize("action", ["blend", "fossilize", "pause"])
def test_what_is_in_preparation_can_only_be_culled(action: str) -> None:
    manager = grown()[2]
    gate = Gate()
    manager.germinate(SLOT, gate, name="a", wait=False)
    with pytest.raises(StageError, match="GERMINATED"):
        getattr(manager, action)("a")
    with pytest.raises(StageError, match="already"):
        manager.germinate(SLOT, "mlp", name="a")
    manager.cull("a")
    gate.open.set()


def test_both_paths_give_the_same_run() -> None:
    def run(wait: bool) -> tuple[Any, Any]:
        host, optimizer, manager = grown()
        manager.step()
        manager.germinate(SLOT, lambda slot: Drawing(), name="a", mode="gated", wait=wait)
        manager.germinate("body.drop1", "mlp", name="b", wait=wait)
        apply(manager)
        weights = frozen(list(manager.seed_parameters()))
        manager.blend("a", steps=3)
        return weights, train(host, optimizer, [PLAN.batch(i) for i in range(5)], lambda _: manager.step())

    (direct, first), (prefetched, second) = run(True), run(False)
    assert_same_bits(prefetched, direct, "weights")
    second.assert_same(first)


def test_a_cull_cancels() -> None:
    sink = Memory()
    host, optimizer, manager = grown(sinks=[sink])
    before = snapshot(host, PLAN.batch(1), [optimizer])
    gate = Gate()
    seed = manager.germinate(SLOT, gate, name="a", wait=False)
    manager.cull("a")
    assert seed.stage is Stage.CULLED
    gate.open.set()
    assert gate.thread is not None or gate.entered.wait(30)
    gate.thread.join(30)
    manager.step()
    assert "a" not in manager.seeds
    assert_same_bits(snapshot(host, PLAN.batch(1), [optimizer]), before, "the host")
    assert [e.data["reason"] for e in sink.of_kind("prefetch_failed")] == ["cancelled"]
    assert manager.metrics()["fxgraft/prefetch/pending"] == {"": 0.0}
    manager.germinate(SLOT, "mlp", name="a")


def raising(slot: Any) -> nn.Module:
    raise OSError("the weights are not there")


FAILURES = {
    "raises": (raising, "the weights are not there"),
    "wrong shape": (lambda slot: nn.Linear(4, 5), "5"),
    "no module": (lambda slot: 3, "int"),
    "exits": (lambda slot: sys.exit(3), ""),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_reported_and_changes_nothing(case: str) -> None:
    factory, said = FAILURES[case]
    sink = Memory()
    host, optimizer, manager = grown(sinks=[sink])
    before = snapshot(host, PLAN.batch(1), [optimizer])
    seed = manager.germinate(SLOT, factory, name="a", wait=False)
    apply(manager)
    assert seed.stage is Stage.CULLED
    assert "a" not in manager.seeds
    assert said in sink.of_kind("prefetch_failed")[0].data["reason"]
    assert_same_bits(snapshot(host, PLAN.batch(1), [optimizer]), before, "the host")
    assert manager.metrics()["fxgraft/prefetch/failed"] == {"": 1.0}
    manager.germinate(SLOT, "mlp", name="a")


def test_a_failure_at_the_swap_is_no_crash_of_the_step() -> None:
    """Two preparations whose modules share a parameter: only at the swap can that be seen."""
    manager = grown()[2]
    shared = nn.Linear(4, 4)
    manager.germinate(SLOT, lambda slot: shared, name="a", wait=False)
    manager.germinate(SLOT, lambda slot: nn.Sequential(shared), name="b", wait=False)
    apply(manager)
    assert list(manager.seeds) == ["a"]


def test_any_error_at_the_swap_is_no_crash_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = grown()[2]
    seed = manager.germinate(SLOT, "mlp", wait=False)

    def full(*args: Any) -> None:
        raise MemoryError("no memory for the graft")

    monkeypatch.setattr(manager.registry, "join", full)
    apply(manager)
    assert seed.stage is Stage.CULLED
    assert not manager.seeds
    assert not manager.host.structure.placements


def test_a_host_that_is_converted_meanwhile_is_followed() -> None:
    host, _, manager = grown()
    gate = Gate()
    seed = manager.germinate(SLOT, gate, wait=False)
    host.double().eval()
    gate.open.set()
    apply(manager)
    assert {p.dtype for p in seed.module.parameters()} == {torch.float64}
    assert not seed.module.training
    manager.blend(seed, steps=1)
    manager.step()
    assert host(PLAN.batch(0).double()).dtype is torch.float64


def test_a_timeout_gives_up() -> None:
    sink = Memory()
    manager = grown(prefetch_timeout=0.05, sinks=[sink])[2]
    gate = Gate()
    seed = manager.germinate(SLOT, gate, name="a", wait=False)
    manager.step()
    assert seed.stage is Stage.GERMINATED
    time.sleep(0.06)
    manager.step()
    assert seed.stage is Stage.CULLED
    assert "0.05 s" in sink.of_kind("prefetch_failed")[0].data["reason"]
    gate.open.set()
    gate.thread.join(30)
    manager.step()
    assert not manager.seeds


def test_without_a_timeout_it_waits() -> None:
    manager = grown(prefetch_timeout=None)[2]
    gate = Gate()
    seed = manager.germinate(SLOT, gate, wait=False)
    manager.step()
    assert seed.stage is Stage.GERMINATED
    gate.open.set()
    apply(manager)
    assert seed.stage is Stage.TRAINING


def test_several_at_once_are_applied_as_they_become_ready() -> None:
    sink = Memory()
    _host, _optimizer, manager = grown(sinks=[sink])
    gates = {name: Gate() for name in "abc"}
    for name, gate in gates.items():
        manager.germinate(SLOT, gate, name=name, wait=False)
    assert manager.metrics()["fxgraft/prefetch/pending"] == {"": 3.0}
    for name in "cab":
        gates[name].open.set()
        assert gates[name].entered.wait(30)
        gates[name].thread.join(30)
        manager.step()
        assert manager.seeds[name].stage is Stage.TRAINING
    assert manager.metrics()["fxgraft/prefetch/completed"] == {"": 3.0}
    assert manager.metrics()["fxgraft/prefetch/pending"] == {"": 0.0}
    assert manager.metrics()["fxgraft/prefetch/latency_ms"][""] > 0
    sync = grown()[2]
    for name in "abc":
        sync.germinate(SLOT, "low_rank", name=name)
    codes = [{n: r.code for n, r in m.host.regions.items()} for m in (manager, sync)]
    assert codes[0] == codes[1]


def test_the_main_thread_does_not_feel_a_preparation() -> None:
    """Draws, operations and results of training while modules are built in a thread, many times."""

    class Big(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(60)), nn.Dropout(0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    def work(host: fxgraft.Host) -> tuple[Any, list[str]]:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        with OperationRecord() as record:
            found = []
            for i in range(15):
                found += [torch.rand(3), random.random(), float(np.random.rand())]
                host.zero_grad()
                loss = loss_of(host(PLAN.batch(i)))
                loss.backward()
                found += [frozen(loss), frozen([p.grad for p in host.parameters()])]
        return found, record.names

    expected = work(grown()[0])
    overlapped = 0
    for trial in range(20):
        host, _, manager = grown()
        gate = Gate(lambda slot: Big())
        gate.open.set()
        seed = manager.germinate(SLOT, gate, wait=False)
        found = work(host)
        overlapped += gate.entered.is_set()
        assert_same_bits(found[0], expected[0], f"trial {trial}")
        assert found[1] == expected[1]
        apply(manager)
        assert seed.stage is Stage.TRAINING
    assert overlapped


def test_a_factory_that_hangs_does_not_keep_the_process() -> None:
    program = """
        import threading, torch, fxgraft
        host = fxgraft.trace(torch.nn.Sequential(torch.nn.Linear(4, 4)), (torch.ones(2, 4),))
        manager = fxgraft.SeedManager(host)
        manager.germinate("0", lambda slot: threading.Event().wait(), wait=False)
        manager.step()
        print(manager.seeds)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT, timeout=120, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "GERMINATED" in done.stdout
    assert done.stderr == ""
