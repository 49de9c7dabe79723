"""Whatever preparing a change raises: no step raises, and the change is applied or is given up, once."""

from __future__ import annotations

import collections
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.compiling import _child, helper, job
from fxgraft.compiling._wanted import WantedCode
from fxgraft.compiling.compiled import CompiledHost
from fxgraft.errors import DistributedError
from fxgraft.host import engine
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager._background import Background
from fxgraft.manager._preparing import Preparing
from fxgraft.telemetry import Memory
from tests.harness import counting_backend
from tests.seed_modules import Drawing

pytestmark = pytest.mark.usefixtures("fresh_compiler")

PLACES: dict[str, tuple[Any, str]] = {
    "what is missing": (CompiledHost, "tasks_for"),
    "the job": (engine, "compile_in_helper"),
    "its run": (job, "HelperRun"),
    "whether there is a process": (helper, "unavailable"),
    "what has come": (job.Job, "take"),
    "what has become": (Preparing, "_apply_prepared"),
    "the next change": (Preparing, "next_change"),
    "a fossil": (Lifecycle, "fossil"),
    "what would be better": (WantedCode, "by_calls"),
}


PATIENCE = 200
"""Seconds for what the compiler process does: it runs at a lower priority, and the machine may be busy."""


class World:
    """A host that compiles with a backend that makes no artifacts, so that all is quick."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.host = fxgraft.trace(
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), (torch.randn(6, 4),)
        )
        self.host.compile(backend=counting_backend("eager"))
        self.optimizer = torch.optim.SGD(self.host.parameters(), 1e-2)
        self.sink = Memory()
        self.manager = SeedManager(self.host, self.optimizer, sinks=[self.sink], check_every=0)
        self.train(1)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.host(torch.randn(6, 4)).square().mean().backward()
            self.optimizer.step()
            self.manager.step()

    def until_settled(self) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for pending in list(self.manager._background.waiting.pending.values()):
                pending.wait(30)
            self.manager._background.wait(0.2)
            self.train(1)
            background = self.manager._background
            if not len(background.waiting) and background.preparing.now is None:
                return
        raise AssertionError(self.manager)


@pytest.fixture(scope="module", autouse=True)
def _no_process() -> Iterator[None]:
    """Nothing here is about what the process makes: it is not started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_child, "_popen", refuse)
        old, helper._process = helper._process, None
        yield
        helper._get().end()
        helper._process = old


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise OSError("[Errno 30] Read-only file system: '/cache'")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("times", [1, 10_000])
def test_no_step_raises_and_no_seed_stays_in_preparation(
    place: str, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    left = iter(range(times))
    owner, name = PLACES[place]
    original = getattr(owner, name)
    monkeypatch.setattr(
        owner, name, lambda *a, **k: original(*a, **k) if next(left, None) is None else refuse()
    )
    seed = world.manager.germinate("0", lambda slot: Drawing(), name="a", wait=False)
    world.until_settled()
    assert seed.stage in (Stage.TRAINING, Stage.CULLED)
    if times == 1:
        assert seed.stage is Stage.TRAINING
    if seed.stage is Stage.CULLED:
        assert "a" not in world.manager.seeds
        (failed,) = world.sink.of_kind("prefetch_failed")
        assert "Read-only file system" in failed.data["reason"]
    world.train(20)
    said = [record.getMessage() for record in caplog.records if record.name == "fxgraft"]
    texts = collections.Counter(said)
    assert set(texts.values()) <= {1}, texts  # said once


@pytest.mark.parametrize("what", ["cull", "fossilize"])
def test_a_change_of_a_live_seed_is_applied_too(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.manager.germinate("0", lambda slot: Drawing(), name="a")
    world.manager.germinate("1", lambda slot: Drawing(), name="b")
    world.manager.blend("a", steps=1)
    world.train(2)
    monkeypatch.setattr(engine, "compile_in_helper", refuse)
    getattr(world.manager, what)("a", wait=False)
    world.train(5)
    left = {placement.seed: placement.spec.fossil for placement in world.host.structure.placements}
    assert left == {"b": None} | ({} if what == "cull" else {"a": 1.0})


def test_a_graft_that_cannot_be_taken_out_is_tried_again_with_the_next_change_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.manager.germinate("0", lambda slot: Drawing(), name="a")
    world.manager.germinate("1", lambda slot: Drawing(), name="b")
    with monkeypatch.context() as patch:
        patch.setattr(Lifecycle, "commit", refuse)
        world.manager.cull("a", wait=False)
        world.train(10)
    assert caplog.text.count("stays in the graph") == 1
    world.train(1)
    assert len(world.host.structure.placements) == 2
    world.manager.germinate("2", lambda slot: Drawing(), name="c", wait=False)
    world.until_settled()
    world.train(3)
    assert [placement.seed for placement in world.host.structure.placements] == ["b", "c"]


def test_a_rank_that_is_gone_is_no_failure_of_preparing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.manager.germinate(
        "0", lambda slot: Drawing(), name="a", wait=False
    )  # there is something to prepare

    def gone(*args: Any) -> None:
        raise DistributedError("rank 1 is gone")

    monkeypatch.setattr(Background, "_advance", gone)
    with pytest.raises(DistributedError, match="rank 1"):
        world.manager.step()


def _in_a_daemonic_process(queue: Any) -> None:
    helper._process = None
    world = World()
    seed = world.manager.germinate("0", lambda slot: Drawing(), name="a", wait=False)
    world.until_settled()
    queue.put(seed.stage.name)


def test_in_a_daemonic_process_a_change_is_applied() -> None:
    """``daemonic processes are not allowed to have children`` came out of every later step."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_a_daemonic_process, args=(queue,), daemon=True)
    child.start()
    child.join(PATIENCE + 60)
    assert child.exitcode == 0
    assert queue.get() == "TRAINING"


ACTIONS: dict[str, Callable[[SeedManager, str], object]] = {
    "germinate": lambda manager, name: manager.germinate("0", lambda slot: Drawing(), name=name, wait=False),
    "twin": lambda manager, name: manager.germinate("1", lambda slot: Drawing(), name=name, wait=False),
    "cull": lambda manager, name: (
        manager.cull(next(iter(manager.seeds)), wait=False) if manager.seeds else None
    ),
    "cull all": lambda manager, name: manager.cull_all(wait=False),
    "train": lambda manager, name: None,
}


@settings(max_examples=max(4, settings().max_examples // 4))
@given(
    actions=st.lists(st.sampled_from(sorted(ACTIONS)), min_size=1, max_size=5),
    place=st.sampled_from(sorted(PLACES)),
    fails=st.lists(st.booleans(), max_size=8),
)
def test_any_order_of_changes_and_failures(actions: list[str], place: str, fails: list[bool]) -> None:
    world = World()
    left = iter(fails)
    owner, name = PLACES[place]
    original = getattr(owner, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, lambda *a, **k: refuse() if next(left, False) else original(*a, **k))
        for i, action in enumerate(actions):
            ACTIONS[action](world.manager, f"s{i}")
            world.train(1)
        world.until_settled()
        world.train(3)
    assert all(seed.stage is Stage.TRAINING for seed in world.manager.seeds.values())
    owned = {id(p) for p in world.manager.seed_parameters()}
    grouped = {id(p) for group in world.optimizer.param_groups for p in group["params"]}
    assert owned <= grouped
