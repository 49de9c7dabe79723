"""``wait=True`` compiles the forward that runs first; the compiler process makes the other one meanwhile."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.compiling import helper
from fxgraft.compiling.promises import Promises
from fxgraft.compiling.variants import Variant
from fxgraft.host import engine
from fxgraft.manager._compiler_help import CompilerHelp
from fxgraft.testing import no_recompiles


class World:
    def __init__(self, module: nn.Module, **options: Any) -> None:
        self.x = torch.randn(3, 4)
        self.host = fxgraft.trace(module, (self.x,))
        self.host.compile(**options)
        self.manager = fxgraft.SeedManager(self.host)
        self.train(1)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.host(self.x).square().sum().backward()
            self.manager.step()

    def wait_until_free(self) -> None:
        until = time.monotonic() + 120
        while not helper.is_free():
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_call_that_waits_compiles_what_runs_first_and_what_comes_later_waits_for_the_rest() -> None:
    world = World(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="inductor")
    world.wait_until_free()
    before = fxgraft.compile_report(world.host).graphs
    world.manager.germinate("1", nn.Linear(4, 4), name="a")
    assert fxgraft.compile_report(world.host).graphs == before + 1
    assert world.manager._background.is_compiling
    with no_recompiles():
        world.train(1)
        world.manager.blend("a", steps=2)  # before the compiler process can be through
        world.train(4)
        world.manager.fossilize("a", wait=False)
    report = fxgraft.compile_report(world.host)
    assert report.uncompiled_calls == 0
    assert report.graphs == before + 1
    assert not world.manager._background._promised


@pytest.mark.usefixtures("fresh_compiler")
def test_what_cannot_travel_is_compiled_in_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="aot_eager")
    monkeypatch.setattr(helper, "is_free", lambda: True)
    monkeypatch.setattr(world.host.compiled, "options", {"fullgraph": True})

    def refuse(*args: Any) -> None:
        raise RuntimeError("it does not travel")

    monkeypatch.setattr(engine, "compile_in_helper", refuse)
    before = fxgraft.compile_report(world.host).graphs
    world.manager.germinate("1", nn.Linear(4, 4), name="a")
    assert fxgraft.compile_report(world.host).graphs == before + 2
    world.manager.germinate("1", nn.Linear(4, 4), name="b")
    assert not world.manager._background.is_compiling


class _Job:
    """Answers after so many looks."""

    failure: str | None = None
    unavailable = None
    is_over = has_arrived = False

    def __init__(self, looks: int, variant: Variant, kind: Any, comes: bool = True) -> None:
        self.looks, self.variant, self.kind, self.comes = looks, variant, kind, comes
        self.failed: dict[int, str] = {}
        self.stopped = False

    def take(self) -> None:
        self.looks -= 1
        if self.looks == 0:
            self.is_over = True
            if self.comes:
                self.variant.promised.pop(self.kind)

    def wait(self, timeout: float | None = None) -> None:
        assert timeout is not None

    def stop(self) -> None:
        self.stopped = True


class _Task:
    def __init__(self, variant: Variant, kind: Any) -> None:
        self.variant, self.kind = variant, kind


def _promised(looks: int, comes: bool = True, timeout: float | None = None) -> Any:
    variant = Variant.make("one", {"backend": "eager"})
    job, task = _Job(looks, variant, "a call", comes), _Task(variant, "a call")
    promises = Promises(timeout)
    promises.make(job, [task])  # type: ignore[arg-type, list-item]
    return promises, job, variant


def test_a_call_waits_until_its_code_is_there() -> None:
    _, job, variant = _promised(3)
    variant.promised["a call"]()
    assert job.looks == 0
    assert not variant.promised


def test_a_call_does_not_wait_for_what_never_comes() -> None:
    for promises, job, variant in (_promised(3, comes=False), _promised(10**9, timeout=0.01)):
        variant.promised["a call"]()
        assert not variant.promised
        assert not promises
        assert job.stopped


def test_what_no_structure_needs_any_more_is_not_made() -> None:
    promises, job, variant = _promised(10)
    assert not promises.take(lambda task: True)
    assert not job.stopped
    assert promises.take(lambda task: False)
    assert job.stopped
    assert not variant.promised
    assert not promises


def test_a_promise_that_is_not_kept_is_no_reason_to_make_none() -> None:
    """One compiler process that was killed: the next change may be promised again. Not for ever."""
    promises = Promises(None)

    def make(failure: str | None) -> None:
        variant = Variant.make("one", {"backend": "eager"})
        job = _Job(1, variant, "a call", comes=failure is None)
        job.failure = failure
        promises.make(job, [_Task(variant, "a call")])  # type: ignore[arg-type, list-item]
        promises.take(lambda task: True)
        assert not promises

    for _ in range(2):
        make("was killed")
        assert not promises.is_hopeless
        assert promises.failure == "was killed"
    make(None)
    assert promises.failure is None
    for _ in range(3):
        assert not promises.is_hopeless
        make("was killed")
    assert promises.is_hopeless


@pytest.mark.usefixtures("fresh_compiler")
def test_after_a_compiler_process_was_killed_promises_are_made_again() -> None:
    world = World(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="inductor")
    world.wait_until_free()
    pid = helper._get().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    world.manager.germinate("1", nn.Linear(4, 4), name="a")
    assert world.manager._background._promised
    os.kill(pid, signal.SIGKILL)
    world.manager._background.wait(60)
    world.train(1)
    assert not world.manager._background._promised
    world.wait_until_free()
    world.manager.germinate("1", nn.Sequential(nn.Linear(4, 4), nn.Tanh()), name="b")
    assert world.manager._background._promised
    world.manager._background.wait(60)


def test_what_was_said_is_remembered_up_to_a_number(caplog: pytest.LogCaptureFixture) -> None:
    said = CompilerHelp("auto")
    for _ in range(2):
        for i in range(100):
            said.say_once(f"reason {i}")
    assert len(caplog.records) == 100
    for i in range(1000):
        said.say_once(f"another reason {i}")
    assert len(said._said) == 100
