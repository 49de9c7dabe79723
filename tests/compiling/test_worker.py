"""The compiler process: one for all, whatever the trainer is and does."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.compiling import _child, helper
from fxgraft.compiling._child import ChildProcess
from fxgraft.compiling._pipe import Pipe
from fxgraft.compiling._torch_settings import TorchSettings
from tests.manager.test_background import (
    SLOT,
    TWIN,
    World,
    compilers,
    halted,
    is_alive,
    no_recompiles,
    the_compiler,
    until,
)
from tests.seed_modules import Drawing

pytestmark = pytest.mark.usefixtures("fresh_compiler")
ROOT = Path(__file__).parents[2]


def run(program: str, *options: str, ends: int = 0, **environment: str) -> str:
    """What a program prints that trains in its own process, and ends with this exit status."""
    command = [sys.executable, *options, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(program)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        # No pipes: what the program has started may hold their ends for longer than it runs.
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, timeout=600, stdout=out, stderr=errors
        )
        out.seek(0)
        errors.seek(0)
        assert done.returncode == ends, errors.read()
        return out.read()


PRELUDE = """
    import os, sys, threading, time, torch, fxgraft
    from torch import nn
    from fxgraft.compiling import helper
    torch.set_num_threads(1)

    def scale(x):  # of __main__, read by a class of __main__
        return x * FACTOR

    FACTOR = 3.0

    class FunctionBlock(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.inner, self.act = nn.Linear(4, 4), act

        def forward(self, x):
            return scale(self.act(self.inner(x)))

    def model():
        class Local(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = FunctionBlock(lambda x: torch.tanh(x))

            def forward(self, x):
                return self.block(x) + 1

        return Local()

    def grow(backend="aot_eager"):
        torch.manual_seed(0)
        x = torch.randn(6, 4)
        host = fxgraft.trace(model(), (x,))
        host.compile(backend=backend)
        optimizer = torch.optim.SGD(host.parameters(), 1e-2)
        manager = fxgraft.SeedManager(host, optimizer)

        def step():
            optimizer.zero_grad()
            host(x).square().mean().backward()
            optimizer.step()
            manager.step()

        step()
        with torch.compiler.set_stance("fail_on_recompile"):
            seed = manager.germinate("block.inner", "mlp", wait=False)
            while seed.stage is fxgraft.Stage.GERMINATED:
                manager._background.wait(60)
                step()
            assert seed.stage is fxgraft.Stage.TRAINING, seed
            step()
        assert fxgraft.compile_report(host).uncompiled_calls == 0
        plain = fxgraft.trace(model(), (x,))
        plain.load_state_dict(host.model_state())
        assert torch.equal(host(x), plain(x))
        return manager
"""


def test_a_pinned_rank_of_torchrun_with_classes_of_its_own_and_a_daemonic_process() -> None:
    """Classes of a script, local ones and lambdas travel; nothing of where the trainer runs does."""
    run(
        """
        import multiprocessing
        # First: where torch is built for CUDA, nothing forked can train after its parent has.
        child = multiprocessing.get_context("fork").Process(target=grow, daemon=True)
        child.start()
        child.join()
        assert child.exitcode == 0
        everything = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(everything)})
        thread = threading.Thread(target=grow)  # it trains there
        thread.start()
        thread.join()
        pid = helper._get().pid
        environment = open(f"/proc/{pid}/environ").read()
        assert "RANK" not in environment and "MASTER" not in environment and "TORCHELASTIC" not in environment
        assert everything <= os.sched_getaffinity(pid)
        assert os.sched_getaffinity(0) == {min(everything)}
        assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
        """,
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT="1",
        TORCHELASTIC_RUN_ID="x",
    )  # fmt: skip


def test_forked_workers_do_not_keep_it_alive() -> None:
    """A DataLoader's worker outlives the trainer for a moment, or for ever; its pipes must not."""
    out = run(
        """
        helper.warm()
        while not helper._get().is_ready:
            time.sleep(0.01)
        pid = helper._get().pid
        child = os.fork()
        if child == 0:
            os.setsid()
            for stream in (0, 1, 2):
                os.close(stream)
            time.sleep(60)
            os._exit(0)
        print(pid, child, flush=True)
        os._exit(0)  # no handler runs: as killed
        """
    )
    pid, child = map(int, out.split())
    try:
        until(lambda: not is_alive(pid), 20)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loaders_do_it_no_harm_and_do_not_keep_it_alive(method: str) -> None:
    """Workers from before it and from after it; some end while it works, others outlive the trainer."""
    out = run(
        """
        import signal
        from torch.utils.data import DataLoader, TensorDataset

        def batches():
            method = os.environ["METHOD"]
            options = {"num_workers": 1, "multiprocessing_context": method, "persistent_workers": True}
            found = iter(DataLoader(TensorDataset(torch.zeros(8, 4)), 4, **options))
            next(found)
            return found

        before = batches()
        helper.warm()
        while not helper._get().is_ready:
            time.sleep(0.01)
        pid = helper._get().pid
        after, ended = batches(), batches()
        del ended
        grow()
        del before
        grow()
        assert helper._get().pid == pid
        next(after)
        (worker,) = after._workers
        os.kill(worker.pid, signal.SIGSTOP)  # what it has inherited it holds for as long as it is there
        print(pid, worker.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        ends=-signal.SIGKILL,
        METHOD=method,
    )
    pid, worker = map(int, out.split())
    try:
        until(lambda: not is_alive(pid), 20)
    finally:
        os.kill(worker, signal.SIGKILL)


CELLS = [
    """
    from dataclasses import dataclass
    from enum import Enum

    class Kind(Enum):
        PLAIN = 1
        SCALED = 2

    @dataclass
    class Config:
        factor: float = 2.0
        kind: Kind = Kind.SCALED

    def change(x):
        return torch.sin(x) * 3.0

    class Grown(nn.Module):
        def __init__(self, act, config):
            super().__init__()
            self.inner, self.act, self.config = nn.Linear(4, 4), act, config

        def forward(self, x):
            factor = self.config.factor if self.config.kind is Kind.SCALED else 1.0
            return self.act(self.inner(x)) * factor + change(x)
    """,
    """
    x = torch.randn(6, 4)
    host = fxgraft.trace(nn.Sequential(Grown(lambda x: torch.tanh(x), Config()), nn.Linear(4, 4)), (x,))
    host.compile(backend="aot_eager")
    manager = fxgraft.SeedManager(host)

    def step():
        host.zero_grad()
        host(x).square().mean().backward()
        manager.step()

    def germinate(slot, module, name):
        with torch.compiler.set_stance("fail_on_recompile"):
            seed = manager.germinate(slot, module, name=name, wait=False)
            while seed.stage is fxgraft.Stage.GERMINATED:
                manager._background.wait(60)
                step()
            manager.blend(seed, to=0.5, steps=1)
            for _ in range(3):
                step()
        with engine.probing(host, host.structure, host.phase) as model:
            expected = model(x).detach()
        assert torch.equal(host(x), expected), name

    step()
    germinate("1", Grown(lambda x: x * 2, Config(0.5)), "first")
    """,
    """
    class Grown(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.inner, self.act = nn.Linear(4, 4), act

        def forward(self, x):
            return self.act(self.inner(x)) - 1.0

    germinate("1", Grown(lambda x: x * 3), "second")
    germinate("0.inner", Grown(lambda x: x * 4), "third")
    report = fxgraft.compile_report(host)
    assert report.uncompiled_calls == 0 and report.graphs == 1, report
    """,
]


def test_what_cells_of_a_notebook_define_is_compiled_in_the_background() -> None:
    """``__main__`` is no file there, and a later cell may define anew what earlier objects are of."""
    run(
        """
        import json, linecache, types
        from fxgraft.host import engine
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__dict__.update(torch=torch, nn=nn, fxgraft=fxgraft, engine=engine)
        for number, source in enumerate(json.loads(os.environ["CELLS"])):
            name = f"<ipython-input-{number}>"
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)
            exec(compile(source, name, "exec"), main.__dict__)
        """,
        CELLS=json.dumps([textwrap.dedent(cell) for cell in CELLS]),
    )


def test_it_is_shared_by_all_hosts_and_stays() -> None:
    pid = the_compiler()
    worlds = [World(), World()]
    for world, slot in zip(worlds, (SLOT, TWIN), strict=True):
        world.manager.germinate(slot, lambda slot: Drawing(), name="a", wait=False)
    for world in worlds:
        world.settle()
        assert world.manager.seeds["a"].stage is fxgraft.Stage.TRAINING
    assert compilers() == [pid]


def test_one_that_ends_while_idle_is_replaced() -> None:
    pid = the_compiler()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid))
    world = World()
    world.start()
    world.settle()
    assert world.manager.seeds["a"].stage is fxgraft.Stage.TRAINING
    assert world.reasons() == []


def test_a_job_behind_one_that_hangs_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_child, "PATIENCE", 0.1)
    first, second = World(), World()
    with halted():
        first.start()
        until(lambda: helper._get().now is not None)
        second.start("b", TWIN)
        first.manager.cull("a")
        second.settle()
    assert second.manager.seeds["b"].stage is fxgraft.Stage.TRAINING


@pytest.fixture
def _garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes through the pipe is not what was sent."""
    the_compiler()
    child = helper._get()._child
    assert child is not None
    original = child._from.recv
    sent = iter([lambda: ("made", -1, 0, b""), lambda: ("nonsense", helper._get().now.number)])
    monkeypatch.setattr(child, "_from", _Garbage(child._from, lambda: next(sent, original)()))


class _Garbage:
    def __init__(self, pipe: Any, recv: Any) -> None:
        self.poll, self.close, self.recv = pipe.poll, pipe.close, recv


@pytest.mark.usefixtures("_garbage")
def test_garbage_on_the_pipe_ends_it_and_not_the_training() -> None:
    world = World()
    world.start()
    world.settle()
    assert not world.manager.seeds
    assert "cannot be read" in world.reasons()[0]
    with no_recompiles():
        world.train()
    world.start()
    world.settle()
    assert world.manager.seeds["a"].stage is fxgraft.Stage.TRAINING


class Heavy(nn.Module):
    """Has more to send than a pipe takes that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table = nn.Linear(4, 4), bytes(2**20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * len(self.table)


def test_one_that_does_not_take_its_job_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_child, "PATIENCE", 0.1)
    world = World(prefetch_timeout=2.0)
    with halted() as pid:
        world.start("a", SLOT, lambda slot: Heavy())
        until(lambda: helper._get().now is not None)
        time.sleep(2.1)
        world.background.step()
        until(lambda: not is_alive(pid), 20)
    assert "2.0 s" in world.reasons()[0]
    world.background.preparing.timeout = None
    world.train()
    world.start("a", SLOT, lambda slot: Heavy())
    world.settle()
    assert world.reasons()[1:] == []
    assert world.manager.seeds["a"].stage is fxgraft.Stage.TRAINING


def test_one_that_stops_in_the_middle_of_an_answer_is_ended() -> None:
    """And one that is slow is waited for, as long as nobody stops what it was asked for."""
    theirs, ours = os.pipe()
    pipe = Pipe(theirs, readable=True)
    message = pickle.dumps(bytes(2**17))
    writer = threading.Thread(target=lambda: os.write(ours, struct.pack("!i", len(message)) + message[:-1]))
    writer.start()
    pipe.is_over = lambda: not writer.is_alive()
    with pytest.raises(TimeoutError):
        pipe.recv()
    pipe.close()
    os.close(ours)


def test_what_python_takes_no_notice_of_in_its_path_disables_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Text(str):
        __slots__ = ()

        def __repr__(self) -> str:
            return "a text"

    monkeypatch.setattr(sys, "path", [Text(sys.path[0]), ROOT, *sys.path[1:]])
    child = ChildProcess()
    assert child.wait_until_ready() is None
    child.kill()
    child.close_and_describe()
    assert TorchSettings.here().path == tuple(entry for entry in sys.path if entry is not ROOT)
    assert set(map(type, TorchSettings.here().path)) == {str}


@pytest.mark.parametrize("which", ["fxgraft-compiler", "fxgraft-a"])
def test_a_thread_that_does_not_start_is_a_reason(
    which: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the compiler process: a change compiles as it is applied. Of a module: it is not built."""
    world = World(compiled=which == "fxgraft-a")
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == which:
            raise RuntimeError("can't start new thread")
        original(thread)

    monkeypatch.setattr(helper, "_process", None)
    monkeypatch.setattr(threading.Thread, "start", start)
    if which == "fxgraft-compiler":
        world.host.compile(backend="aot_eager")
        world.train(1)
    world.manager.germinate(SLOT, lambda slot: Drawing(), name="a", wait=False)
    world.settle()
    world.train(1)
    if which == "fxgraft-a":
        assert world.manager.seeds == {}
        assert "cannot be started: can't start new thread" in world.reasons()[0]
    else:
        assert world.manager.seeds["a"].stage is fxgraft.Stage.TRAINING
        assert "can't start new thread" in caplog.text
    monkeypatch.undo()
    world.manager.germinate(TWIN, lambda slot: Drawing(), name="b", wait=False)
    world.settle()
    assert world.manager.seeds["b"].stage is fxgraft.Stage.TRAINING


class Locked(nn.Module):
    """Holds what cannot travel, and may read it."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.inner, self.lock, self.reads = nn.Linear(4, 4), threading.Lock(), reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.reads and self.lock.locked():
            return x
        return torch.relu(self.inner(x))


def test_an_attribute_that_cannot_travel_is_no_obstacle_where_no_code_reads_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(compiled=False)
    world.host = fxgraft.trace(nn.Sequential(Locked(False), nn.Linear(4, 4)), (torch.randn(6, 4),))
    world.host.compile(backend="aot_eager")
    world.manager = fxgraft.SeedManager(world.host, sinks=[world.sink])
    world.optimizer = torch.optim.SGD(world.host.parameters(), 1e-2)
    world.train(2)
    world.start("a", "0.relu")
    world.settle()
    with no_recompiles():
        world.train()
    assert world.manager.seeds["a"].stage is fxgraft.Stage.TRAINING
    assert caplog.text.count("is not given") <= 1


@pytest.mark.inductor
def test_what_it_makes_is_kept_where_the_trainer_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_compiler()  # which was started with another folder
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    world = World(backend="inductor")
    before = set(tmp_path.rglob("*.so"))
    world.start("a", SLOT, "low_rank")
    world.settle()
    assert set(tmp_path.rglob("*.so")) > before
    with no_recompiles():
        world.train()
    assert fxgraft.compile_report(world.host).uncompiled_calls == 0


def test_torchs_settings_are_those_of_the_trainer() -> None:
    """Guards of compiled code look at them: code that was made under others would not be run."""
    world = World()
    try:
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.bfloat16)
        torch.set_float32_matmul_precision("high")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = True
        world.host.to(torch.bfloat16)
        world.optimizer.state.clear()
        world.inputs = None  # its draws are of the default dtype
        world.train(1)
        world.start("a", SLOT, "low_rank")
        world.settle()
        world.train(1)
        report = fxgraft.compile_report(world.host)
        assert report.artifacts == 2
        assert report.uncompiled_calls == 0
    finally:
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
