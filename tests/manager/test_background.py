"""Changes that training does not wait for: compiled in the compiler process, applied at a step boundary."""

from __future__ import annotations

import collections
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.compiling import _artifacts, _child, helper
from fxgraft.host import engine
from fxgraft.manager import _prefetch
from fxgraft.telemetry import Memory
from fxgraft.testing import no_recompiles
from fxgraft_passes import Phase
from tests.harness import assert_same_bits, counting_backend, frozen, loss_of, snapshot, traced_once
from tests.seed_modules import Drawing, Scale

pytestmark = pytest.mark.usefixtures("fresh_compiler")
ROOT = Path(__file__).parents[2]


class BnBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.norm(self.inner(x)))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = BnBlock()

    def forward(self, x: torch.Tensor) -> collections.OrderedDict[str, torch.Tensor]:
        return collections.OrderedDict(out=self.block(x))


SLOT, TWIN = "0.relu", "1.relu"


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(nn.Sequential(BnBlock(), BnBlock()), (torch.randn(6, 4),))


class World:
    """A host in training, compiled ahead of time without fusing: it has the bits of eager mode."""

    def __init__(self, compiled: bool = True, backend: Any = "aot_eager", **options: Any) -> None:
        torch.manual_seed(0)
        self.inputs = torch.Generator().manual_seed(1)
        self.host = traced()
        if compiled:
            self.host.compile(backend=backend, **options.pop("compile", {}))
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.sink = Memory()
        self.manager = SeedManager(self.host, self.optimizer, sinks=[self.sink], **options)
        self.seen: list[Any] = []
        self.train(2)

    def train(self, steps: int = 1, batch: int = 6) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            out = self.host(torch.randn(batch, 4, generator=self.inputs))
            loss_of(out).backward()
            self.seen.append(frozen([out, *(p.grad for p in self.host.host_parameters())]))
            self.optimizer.step()
            self.manager.step()

    @property
    def background(self) -> Any:
        return self.manager._background

    def settle(self, until: Any = None) -> None:
        """Wait until nothing is in preparation (or ``until`` is true), without training."""
        until = until or (lambda: not len(self.background.waiting) and self.background.preparing.now is None)
        deadline = time.monotonic() + 300
        while True:
            self.background.wait(60)
            self.background.step()
            if until():
                return
            assert time.monotonic() < deadline

    def start(self, name: str = "a", slot: str = SLOT, blueprint: Any = None) -> fxgraft.Seed:
        """A germination whose compilation has begun."""
        seed = self.manager.germinate(slot, blueprint or (lambda slot: Drawing()), name=name, wait=False)
        self.settle(lambda: self.background.preparing.now is not None or not len(self.background.waiting))
        return seed

    def reasons(self) -> list[str]:
        return [event.data["reason"] for event in self.sink.of_kind("prefetch_failed")]


@pytest.fixture(autouse=True)
def _one_process_at_most_and_no_limit_is_hit() -> Iterator[None]:
    # Not by monkeypatch: what that puts back is gone from torch's configuration afterwards.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    assert len(compilers()) <= 1  # one for all hosts, however many have ended


def compilers() -> list[int]:
    """The compiler processes that are children of this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and b"fxgraft.compiling._worker" in command and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def the_compiler() -> int:
    """The compiler process, when it is ready."""
    helper.warm()
    until(lambda: helper._get().is_ready and compilers())
    return compilers()[0]


@contextmanager
def halted() -> Iterator[int]:
    """The compiler process is there, and does nothing inside: what it is given stays undone."""
    pid = the_compiler()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def until(is_so: Callable[[], Any], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_whole_life_without_a_compilation_in_the_trainer() -> None:
    world = World()
    with no_recompiles():
        seed = world.start()
        assert seed.stage is Stage.GERMINATED
        world.train(2)
        world.settle()
        assert seed.stage is Stage.TRAINING
        world.train(2)
        world.manager.blend("a", to=0.5, steps=2)
        world.train(3)
        world.manager.blend("a", to=1.0, steps=2)
        world.train(3)
        world.manager.cull("a", wait=False)
        world.train(2)
        world.settle(lambda: not world.host.structure.placements)
        world.train(2)
        world.manager.germinate(SLOT, lambda slot: Drawing(), name="b", wait=False)
        world.settle()
        world.train()
    assert fxgraft.compile_report(world.host).uncompiled_calls == 0


def test_it_is_live_with_the_forward_that_runs_first() -> None:
    """The one that it blends by comes after it: until then a blend runs uncompiled, and no step waits."""
    world = World()
    with no_recompiles():
        seed = world.start()
        until(lambda: world.background.step() or seed.stage is Stage.TRAINING)
        assert world.background.preparing.now is not None
        job = world.background.preparing.now.job
        assert [task.phase.value for task in job._tasks if task.is_required] == ["isolated"]
        assert job._unanswered
        world.train(2)
        assert fxgraft.compile_report(world.host).uncompiled_calls == 0
        world.manager.blend("a", to=0.5, steps=1)
        before = len(world.seen)
        world.train(2)
        world.settle()
        ahead = fxgraft.compile_report(world.host).uncompiled_calls
        assert ahead <= len(world.seen) - before
        world.train(3)
    report = fxgraft.compile_report(world.host)
    assert (report.uncompiled_calls, report.artifacts) == (ahead, 2)


def test_until_it_is_applied_nothing_is_touched() -> None:
    """The host's code, weights, buffers, gradients and random streams, while the helper compiles."""
    world = World()
    state = torch.get_rng_state()
    before = snapshot(world.host, torch.ones(6, 4), [world.optimizer])
    grads = frozen([p.grad for p in world.host.parameters()])
    run = world.host._running.call
    structure = world.host.structure
    seed = world.start()
    world.background.wait(60)  # all has come, and nothing is taken in
    assert seed.stage is Stage.GERMINATED
    assert world.host.structure is structure
    assert world.host._running.call is run
    torch.set_rng_state(state)
    assert_same_bits(snapshot(world.host, torch.ones(6, 4), [world.optimizer]), before, "the host")
    assert_same_bits(frozen([p.grad for p in world.host.parameters()]), grads, "gradients")
    world.settle()


def test_code_of_the_helper_has_the_bits_of_eager_mode() -> None:
    def life(compiled: bool) -> list[Any]:
        world = World(compiled)
        world.start("a")
        world.settle()
        world.train(2)
        world.manager.blend("a", to=0.75, steps=2)
        world.train(3)
        world.start("b", TWIN, Scale())
        world.settle()
        world.train(2)
        world.manager.fossilize("a", wait=False)
        world.settle(lambda: world.manager.seeds["a"].stage is Stage.FOSSILIZED)
        world.train(2)
        world.manager.cull("b", wait=False)
        world.settle(lambda: len(world.host.structure.placements) == 1)
        world.train(1)
        return world.seen

    for i, (compiled, eager) in enumerate(zip(life(True), life(False), strict=True)):
        assert_same_bits(compiled, eager, f"step {i}")


def test_several_that_are_built_go_into_one_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    jobs = []
    original = engine.compile_in_helper
    monkeypatch.setattr(engine, "compile_in_helper", lambda *args: jobs.append(1) or original(*args))
    for name, slot in [("a", SLOT), ("b", TWIN), ("c", SLOT)]:
        world.manager.germinate(slot, lambda slot: Drawing(), name=name, wait=False)
    world.settle()
    assert [seed.stage for seed in world.manager.seeds.values()] == [Stage.TRAINING] * 3
    assert len(jobs) == 1
    assert list(world.manager.seeds) == ["a", "b", "c"]


@pytest.mark.parametrize(("seconds", "structures"), [(60.0, 1), (0.0, 2)])
def test_what_is_built_waits_a_moment_for_what_was_asked_for_with_it(
    seconds: float, structures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_prefetch, "GATHERS", seconds)
    world = World()
    jobs = []
    original = engine.compile_in_helper
    monkeypatch.setattr(engine, "compile_in_helper", lambda *args: jobs.append(1) or original(*args))
    goes_on = threading.Event()

    def slow(slot: fxgraft.Slot) -> nn.Module:
        goes_on.wait(60)
        return Drawing()

    world.manager.germinate(SLOT, lambda slot: Drawing(), name="a", wait=False)
    world.manager.germinate(TWIN, slow, name="b", wait=False)
    world.background.waiting.pending["a"].wait(60)
    world.train()
    assert len(jobs) == structures - 1
    goes_on.set()
    world.settle()
    assert [seed.stage for seed in world.manager.seeds.values()] == [Stage.TRAINING] * 2
    assert len(jobs) == structures


def test_equal_seeds_in_equal_blocks_are_compiled_once() -> None:
    world = World()
    world.host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), BnBlock(), BnBlock()), (torch.randn(6, 4),))
    world.host.compile(backend="aot_eager", granularity="region")
    world.manager = SeedManager(world.host, torch.optim.AdamW(world.host.parameters(), 1e-2))
    world.train(2)
    twins = [world.manager.germinate(slot, "low_rank", wait=False) for slot in ("1.relu", "2.relu")]
    world.settle(lambda: world.background.preparing.now is not None)
    assert world.background.preparing.now is not None
    tasks = world.background.preparing.now.job._tasks
    assert len({(task.phase, task.kind) for task in tasks}) == len(tasks) == 2
    world.settle()
    assert [seed.stage for seed in twins] == [Stage.TRAINING] * 2
    with no_recompiles():
        world.train(2)  # both blocks run it
    assert fxgraft.compile_report(world.host).uncompiled_calls == 0


def test_code_that_makes_its_output_with_another_modules_class_is_taken() -> None:
    host = fxgraft.trace(Named(), (torch.randn(6, 4),))
    host.compile(backend="aot_eager")
    manager = SeedManager(host)
    host(torch.randn(6, 4))["out"].sum().backward()
    with no_recompiles():
        seed = manager.germinate("block.relu", "low_rank", wait=False)
        while seed.stage is Stage.GERMINATED:
            manager._background.wait(60)
            manager.step()
        assert seed.stage is Stage.TRAINING
        out = host(torch.randn(6, 4))
    assert type(out) is collections.OrderedDict
    assert fxgraft.compile_report(host).uncompiled_calls == 0
    manager._background.preparing.drop()


def test_one_that_is_asked_for_meanwhile_comes_with_the_next_structure() -> None:
    world = World()
    first = world.start("a")
    second = world.manager.germinate(TWIN, lambda slot: Drawing(), name="b", wait=False)
    world.settle(lambda: first.stage is Stage.TRAINING)
    assert second.stage is Stage.GERMINATED
    world.settle()
    assert second.stage is Stage.TRAINING


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_compiler_process_that_dies_leaves_the_host_as_it_was(number: signal.Signals) -> None:
    world = World()
    before = snapshot(world.host, torch.ones(6, 4), [world.optimizer])
    with halted() as pid:
        seed = world.start()
        os.kill(pid, number)
    world.settle()
    assert seed.stage is Stage.CULLED
    assert "a" not in world.manager.seeds
    assert number.name in world.reasons()[0]
    assert_same_bits(snapshot(world.host, torch.ones(6, 4), [world.optimizer]), before, "the host")
    with no_recompiles():
        world.train()
    world.start()
    world.settle()
    assert world.manager.seeds["a"].stage is Stage.TRAINING


def test_a_compiler_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_child, "PATIENCE", 0.1)
    world = World(prefetch_timeout=0.2)
    with halted() as pid:
        world.start()
        time.sleep(0.25)
        world.background.step()
        until(lambda: not is_alive(pid))
    assert "0.2 s" in world.reasons()[0]
    assert not world.manager.seeds


@pytest.mark.parametrize("what", ["cull", "fossilize"])
def test_what_has_to_come_is_applied_without_a_compiler_process_that_takes_too_long(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_child, "PATIENCE", 0.1)
    world = World()
    world.manager.germinate(SLOT, Drawing(), name="a")
    world.manager.germinate(TWIN, Drawing(), name="b")
    world.manager.blend("a", steps=1)
    world.train(2)
    world.settle()
    world.background.preparing.timeout = 0.2
    with halted() as pid:
        getattr(world.manager, what)("a", wait=False)
        world.background.step()
        assert world.background.preparing.now is not None
        time.sleep(0.25)
        world.background.step()
        until(lambda: not is_alive(pid))
    left = {placement.seed: placement.spec.fossil for placement in world.host.structure.placements}
    assert left == {"b": None} | ({} if what == "cull" else {"a": 1.0})


@pytest.mark.parametrize("hangs", [False, True])
def test_a_cull_ends_what_is_compiled_for_it(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to the next job; where it does not, another process does."""
    monkeypatch.setattr(_child, "PATIENCE", 0.1 if hangs else 60.0)
    world = World()
    before = snapshot(world.host, torch.ones(6, 4), [world.optimizer])
    with halted() as pid:
        world.start()
        until(lambda: helper._get().now is not None)
        world.manager.cull("a")
        if hangs:
            until(lambda: not is_alive(pid))
    assert world.reasons() == ["cancelled"]
    until(lambda: helper._get().now is None)
    assert (the_compiler() == pid) is not hangs
    assert_same_bits(snapshot(world.host, torch.ones(6, 4), [world.optimizer]), before, "the host")


def holding() -> World:
    """A seed that holds, whose way into the host is being compiled."""
    world = World()
    world.manager.germinate(SLOT, Drawing(), name="a")
    world.manager.blend("a", steps=1)
    world.train(2)
    world.manager.fossilize("a", wait=False)
    world.background.step()
    assert world.background.preparing.now is not None
    return world


def test_a_blend_takes_a_fossilization_back_that_waits() -> None:
    world = holding()
    world.manager.blend("a", to=0.5, steps=2)
    assert world.background.preparing.now is None
    world.train(4)
    world.settle()
    seed = world.manager.seeds["a"]
    assert (seed.stage, seed.alpha) == (Stage.HOLDING, 0.5)
    world.manager.fossilize("a", wait=False)
    world.settle(lambda: seed.stage is Stage.FOSSILIZED)


@pytest.mark.parametrize("what", ["cull", "cull later", "blend", "fossilize"])
def test_a_fossilization_that_was_taken_back_is_forgotten(what: str) -> None:
    world = holding()
    manager = world.manager
    {
        "cull": lambda: manager.cull("a"),
        "cull later": lambda: manager.cull("a", wait=False),
        "blend": lambda: manager.blend("a", to=0.5, steps=1),
        "fossilize": lambda: manager.fossilize("a"),
    }[what]()
    assert world.background.waiting.fossils == {}
    world.settle()
    world.train(2)
    world.settle()
    stage = {"blend": Stage.HOLDING, "fossilize": Stage.FOSSILIZED}.get(what)
    assert {seed.stage for seed in manager.seeds.values()} == ({stage} if stage else set())


def test_of_two_the_one_that_is_culled_does_not_come() -> None:
    world = World()
    world.manager.germinate(SLOT, lambda slot: Drawing(), name="a", wait=False)
    world.start("b", TWIN)
    world.manager.cull("a")
    world.settle()
    assert list(world.manager.seeds) == ["b"]
    assert world.manager.seeds["b"].stage is Stage.TRAINING


def test_a_change_in_between_starts_it_anew() -> None:
    world = World()
    seed = world.start()
    world.manager.germinate(TWIN, Scale(), name="b")
    world.train()
    world.settle()
    assert seed.stage is Stage.TRAINING
    with no_recompiles():
        world.train()


def test_a_host_that_is_converted_in_between_is_followed() -> None:
    world = World()
    seed = world.start()
    world.host.double()
    world.settle()
    assert {p.dtype for p in seed.module.parameters()} == {torch.float64}
    out = world.host(torch.randn(6, 4, dtype=torch.float64))
    assert out.dtype is torch.float64


def test_what_the_compiler_process_cannot_make_is_made_at_the_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(_artifacts.Loading, "__init__", refuse)
    seed = world.start()
    world.settle()
    assert seed.stage is Stage.TRAINING
    with no_recompiles():
        world.train()


def test_a_backend_that_makes_no_artifacts_compiles_at_the_swap(caplog: pytest.LogCaptureFixture) -> None:
    world = World(backend=counting_backend("eager"))
    seed = world.start()
    world.settle()
    assert seed.stage is Stage.TRAINING
    assert "compiling at the swap" in caplog.text
    with no_recompiles():
        world.train()


def test_a_compiler_that_fails_at_the_swap_too_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(backend=counting_backend("eager"))
    before = snapshot(world.host, torch.ones(6, 4), [world.optimizer])
    seed = world.start()

    def fail(*args: Any) -> None:
        raise RuntimeError("the compiler is broken")

    monkeypatch.setattr(type(world.host.compiled), "warm_up", fail)
    world.settle()
    assert seed.stage is Stage.CULLED
    assert "the compiler is broken" in world.reasons()[0]
    assert_same_bits(snapshot(world.host, torch.ones(6, 4), [world.optimizer]), before, "the host")


@pytest.fixture
def _no_process_yet() -> Iterator[None]:
    """Nothing that a start depends on is known from before, nor afterwards."""
    helper._get().end()
    helper._process = None
    yield
    helper._get().end()
    helper._process = None


@pytest.mark.usefixtures("_no_process_yet")
@pytest.mark.parametrize("how", ["off", "no pipes", "no process", "no interpreter"])
def test_without_a_compiler_process_it_compiles_when_it_is_applied(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if how == "no pipes":
        monkeypatch.setattr(helper, "unavailable", lambda: "it needs POSIX pipes")
    if how == "no process":
        monkeypatch.setattr(_child, "_popen", refuse)
    if how == "no interpreter":
        monkeypatch.setattr(helper.spawn, "get_executable", lambda: "/bin/false")
    world = World(helper="off" if how == "off" else "auto")
    for name, slot in [("a", SLOT), ("b", TWIN)]:
        seed = world.manager.germinate(slot, lambda slot: Drawing(), name=name, wait=False)
        world.settle()
        world.train()
        assert seed.stage is Stage.TRAINING
    with no_recompiles():
        world.train()
    assert world.reasons() == []
    assert caplog.text.count("no compiler process") == (0 if how == "off" else 1)
    assert ("no more processes" in caplog.text) is (how == "no process")
    assert ("exit status 1" in caplog.text) is (how == "no interpreter")


def refuse(*args: Any) -> Any:
    raise BlockingIOError("no more processes")


def test_an_unknown_kind_of_helper_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, off"):
        World(helper="thread")


def test_a_cull_that_does_not_wait_is_felt_at_once() -> None:
    """By outputs, optimizer, hooks and names; the graph follows."""
    world = World()
    world.manager.germinate(SLOT, Scale(3.0), name="a")
    world.manager.blend("a", steps=1)
    world.train(2)
    module = world.manager.seeds["a"].module
    parameters = list(module.parameters())
    plain = World()
    plain.host.load_state_dict(world.host.model_state())
    world.manager.cull("a", wait=False)
    assert "a" not in world.manager.seeds
    assert all(p not in world.optimizer.state for p in parameters)
    assert {id(p) for p in parameters}.isdisjoint(
        id(p) for group in world.optimizer.param_groups for p in group["params"]
    )
    x = torch.randn(6, 4)
    assert_same_bits(frozen(world.host(x)), frozen(plain.host(x)), "the output")
    with pytest.raises(fxgraft.errors.StageError, match="'a'"):
        world.manager.germinate(SLOT, Scale(), name="a")
    with no_recompiles():
        world.train(2)
        world.settle(lambda: not world.host.structure.placements)
        world.train()
    assert not [key for key in world.host.state_dict() if key.startswith("_seeds")]
    world.manager.germinate(SLOT, Scale(), name="a")


def test_a_graft_that_departs_is_not_saved(tmp_path: Path) -> None:
    world = World()
    world.manager.germinate(SLOT, Scale(), name="a")
    world.manager.germinate(TWIN, Scale(), name="b")
    world.manager.cull("a", wait=False)
    world.manager.save(tmp_path / "run")
    host = fxgraft.trace(nn.Sequential(BnBlock(), BnBlock()), (torch.randn(6, 4),))
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = SeedManager.load(tmp_path / "run", host, optimizer, blueprints={"b": Scale()})
    assert list(manager.seeds) == ["b"]


def test_calls_that_no_code_was_made_for_run_uncompiled_and_are_prepared_for() -> None:
    """Another batch size, after the seed came: run right, counted, and compiled in the background."""
    world = World()
    world.start()
    world.settle()
    plain = World(compiled=False)
    plain.start()
    plain.settle()
    with no_recompiles():
        for size in (5, 5, 7):
            world.train(1, size)
            plain.train(1, size)
        assert fxgraft.compile_report(world.host).uncompiled_calls == 3
        world.settle()
        for size in (6, 5, 7, 9):  # sizes that differed are dynamic now
            world.train(1, size)
            plain.train(1, size)
    assert fxgraft.compile_report(world.host).uncompiled_calls == 3
    for i, (ours, theirs) in enumerate(zip(world.seen, plain.seen, strict=True)):
        assert_same_bits(ours, theirs, f"step {i}")


def test_every_mode_that_was_seen_is_prepared_for() -> None:
    world = World()

    def call() -> torch.Tensor:
        world.host.eval()
        with torch.no_grad():
            out = world.host(torch.ones(6, 4))
        world.host.train()
        with torch.autocast("cpu", torch.bfloat16):
            world.host(torch.ones(6, 4))
        return out

    call()
    world.start()
    world.settle()
    with no_recompiles():
        call()
        world.train()
        world.manager.blend("a", steps=1)
        world.train(2)
        call()
    assert fxgraft.compile_report(world.host).uncompiled_calls == 0


def test_the_seed_is_live_before_the_code_for_evaluation_is_there() -> None:
    world = World()
    world.host.eval()
    with torch.no_grad():
        world.host(torch.ones(6, 4))
    world.host.train()
    seed = world.start()
    until(lambda: world.background.step() or seed.stage is Stage.TRAINING)
    assert world.background.preparing.now is not None
    world.host.eval()
    with torch.no_grad(), no_recompiles():
        world.host(torch.ones(6, 4))
    world.host.train()
    world.settle()


def test_when_the_last_of_several_has_learned_the_objectives_are_compiled_away() -> None:
    world = World()
    world.manager.germinate(SLOT, Scale(), name="a")
    world.manager.germinate(TWIN, Scale(), name="b")
    running = world.host.compiled.running
    unit = world.host.compiled.units.blocks[0]
    with no_recompiles():
        world.manager.blend("a", steps=3)
        world.train()
        assert running[unit].phase is Phase.BLENDED
        world.manager.blend("b", steps=3)
        world.train()
        world.settle()
        assert running[unit].phase is Phase.SETTLED
        world.train(3)
    eager = World(compiled=False)
    eager.manager.germinate(SLOT, Scale(), name="a")
    eager.manager.germinate(TWIN, Scale(), name="b")
    eager.manager.blend("a", steps=3)
    eager.train()
    eager.manager.blend("b", steps=3)
    eager.train(4)
    for i, (ours, theirs) in enumerate(zip(world.seen, eager.seen, strict=True)):
        assert_same_bits(ours, theirs, f"step {i}")


def test_a_run_that_is_loaded_can_begin_uncompiled(tmp_path: Path) -> None:
    world = World()
    world.manager.germinate(SLOT, Scale(), name="a")
    world.manager.save(tmp_path / "run")
    host = fxgraft.trace(nn.Sequential(BnBlock(), BnBlock()), (torch.randn(6, 4),))
    host.compile(backend="aot_eager")
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = SeedManager.load(tmp_path / "run", host, optimizer, blueprints={"a": Scale()}, wait=False)
    resumed = World.__new__(World)
    resumed.host, resumed.optimizer, resumed.manager, resumed.seen = host, optimizer, manager, []
    resumed.inputs = torch.Generator().manual_seed(2)
    world.inputs.manual_seed(2)
    world.seen.clear()
    with no_recompiles():
        resumed.train(2)
        assert fxgraft.compile_report(host).uncompiled_calls == 2
        resumed.settle()
        resumed.train()
    world.train(3)
    assert fxgraft.compile_report(host).uncompiled_calls == 2
    for ours, theirs in zip(resumed.seen, world.seen, strict=True):
        assert_same_bits(ours, theirs, "the run")


def test_under_gradient_accumulation_it_is_applied_between_optimizer_steps_only() -> None:
    world = World()
    seed = world.start()
    world.background.wait(60)
    for _ in range(4):
        loss_of(world.host(torch.randn(6, 4))).backward()
        assert seed.stage is Stage.GERMINATED
    world.optimizer.step()
    world.settle()
    assert seed.stage is Stage.TRAINING


def test_the_module_of_a_culled_seed_is_freed() -> None:
    world = World()
    world.start()
    world.settle()
    world.train()
    module = weakref.ref(world.manager.seeds["a"].module)
    world.manager.cull("a", wait=False)
    world.settle(lambda: not world.host.structure.placements)
    world.train(2)
    gc.collect()
    assert module() is None


def test_a_rollback_is_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seeds go at once: the structures with two and with one are never compiled."""
    world = World(backend=counting_backend("aot_eager"))
    for name, slot in [("a", SLOT), ("b", TWIN), ("c", SLOT)]:
        world.manager.germinate(slot, Scale(), name=name)
    world.train()
    with no_recompiles():
        assert world.manager.cull_all() == ["c", "b", "a"]
        world.train()
    assert not world.host.structure.placements


def test_a_rollback_need_not_wait() -> None:
    world = World()
    for name, slot in [("a", SLOT), ("b", TWIN)]:
        world.manager.germinate(slot, Scale(3.0), name=name)
        world.manager.blend(name, steps=1)
        world.train()
    plain = World()
    plain.host.load_state_dict(world.host.model_state())
    world.manager.germinate(TWIN, lambda slot: Drawing(), name="c", wait=False)
    with no_recompiles():
        assert world.manager.cull_all(wait=False) == ["c", "b", "a"]
        x = torch.randn(6, 4)
        assert_same_bits(frozen(world.host(x)), frozen(plain.host(x)), "the output")
        world.settle(lambda: not world.host.structure.placements)
        world.train()


@pytest.mark.parametrize("busy", [False, True])
def test_a_trainer_that_is_killed_takes_its_compiler_process_along(busy: bool) -> None:
    program = """
        import os, sys, time, torch, fxgraft
        from torch import nn
        from fxgraft.compiling import helper
        TRAINER = os.getpid()
        def slow(graph_module, inputs, **options):
            if os.getpid() != TRAINER:
                print("compiles", flush=True)
                time.sleep(600)
            return graph_module
        host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4)), (torch.ones(2, 4),))
        host.compile(backend=slow)
        manager = fxgraft.SeedManager(host)
        host(torch.ones(2, 4)).sum().backward()
        manager.step()
        while not helper._get().is_ready:
            time.sleep(0.01)
        if BUSY:
            manager.germinate("0", "low_rank", wait=False)
            manager._background.waiting.pending["low_rank_at_0"].wait()
            manager.step()
            child = helper._get()._child
            while b"compiles" not in os.pread(child._printed.fileno(), 10_000, 0):
                time.sleep(0.01)
        print(helper._get().pid, flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run(
        [sys.executable, "-c", f"BUSY = {busy}\n{textwrap.dedent(program)}"],
        cwd=ROOT, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    pid = int(done.stdout.split()[0])
    until(lambda: not is_alive(pid), 20)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


ACTIONS = ["germinate a", "germinate b", "blend", "cull", "cull later", "fossilize later", "eval", "small"]


@settings(
    max_examples=max(5, settings().max_examples // 4), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(actions=st.lists(st.sampled_from(ACTIONS), min_size=3, max_size=6), region=st.booleans())
def test_any_order_of_calls_has_the_bits_of_eager_mode(actions: list[str], region: bool) -> None:
    def life(compiled: bool) -> list[Any]:
        options = {"compile": {"granularity": "region" if region else "host"}} if compiled else {}
        world = World(compiled, **options)
        for i, action in enumerate(actions):
            act(world, action, f"{action[-1]}{i}")
            world.train(1, 5 if action == "small" else 6)
        world.settle(lambda: not len(world.background.waiting))
        world.train(2)
        report = compiled and fxgraft.compile_report(world.host)
        assert not report or report.graph_breaks == 0
        world.background.preparing.drop()
        return world.seen[-2:]

    for compiled, eager in zip(life(True), life(False), strict=True):
        assert_same_bits(compiled, eager, str(actions))


def act(world: World, action: str, name: str) -> None:
    manager = world.manager
    live = [seed for seed in manager.seeds.values() if seed.is_live]
    if action.startswith("germinate"):
        slot, blueprint = (SLOT, lambda slot: Drawing()) if action[-1] == "a" else (TWIN, Scale())
        manager.germinate(slot, blueprint, name=name, wait=False)
        world.settle()
    elif action == "eval":
        world.host.eval()
        with torch.no_grad():
            world.host(torch.ones(6, 4))
        world.host.train()
    elif action == "blend" and live:
        manager.blend(live[0], to=0.5, steps=1)
    elif action.startswith("cull") and live:
        manager.cull(live[-1], wait=action == "cull")
    elif action == "fossilize later" and live and live[0].stage is Stage.HOLDING:
        manager.fossilize(live[0], wait=False)
        world.settle(lambda: manager.seeds[live[0].name].stage is Stage.FOSSILIZED)


@pytest.mark.parametrize("moment", ["at once", "after a step"])
def test_a_program_may_end_while_something_is_prepared(moment: str) -> None:
    """A thread that was torn out of torch aborted the process on its way out, four times in five."""
    program = """
        import torch, fxgraft
        from torch import nn
        torch.set_num_threads(1)
        x = torch.randn(4, 6)
        host = fxgraft.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (x,))
        host.compile(backend="aot_eager", dynamic=False)
        manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 1e-2), check_every=0)
        def step():
            host(x).square().mean().backward()
            manager.step()
        step()
        manager.germinate("1", "mlp", wait=False)
        if MOMENT == "after a step":
            step()
        print(manager.seeds)
    """
    for _ in range(2 if moment == "at once" else 1):
        done = subprocess.run(
            [sys.executable, "-c", f"MOMENT = {moment!r}\n{textwrap.dedent(program)}"],
            cwd=ROOT, timeout=120, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert "GERMINATED" in done.stdout
        assert (done.returncode, done.stderr) == (0, "")
