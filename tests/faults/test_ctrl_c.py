"""Ctrl-C at any line of the library: what was begun is done or undone, and training goes on.

A real SIGINT is sent at the n-th line that fxgraft runs in a call. ``FXGRAFT_HYPOTHESIS=thorough`` takes
every line, otherwise a sample of them is taken. Lines that begin with ``with`` are left out: they are
run once more on the way out, where Python itself gives no context manager a chance (CPython issue
74174); and so is the file that holds interrupts back, before whose first line nothing was begun.
"""

from __future__ import annotations

import linecache
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.util.interrupts import delay_interrupts, interruptible
from tests.harness import THOROUGH, assert_same_bits, frozen, traced_once

LIBRARY = str(Path(fxgraft.__file__).parent)
MECHANISM = fxgraft.util.interrupts.__file__
SAMPLE = None if THOROUGH else 24


@pytest.fixture(autouse=True)
def _interrupts():
    """Python's own handler: a process that was started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@traced_once
def traced() -> fxgraft.Host:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    return fxgraft.trace(model, (torch.randn(4, 6),))


class World:
    """A small host with a live seed in each stage, a momentum in each parameter, and a pending one."""

    def __init__(self, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(4, 6)
        self.host = traced()
        self.optimizer = torch.optim.SGD(self.host.parameters(), 0.1, momentum=0.9)
        self.manager = SeedManager(self.host, self.optimizer, check_every=2)
        for name, slot in {"learns": "1", "blends": "3", "holds": "0"}.items():
            self.manager.germinate(slot, "mlp", name=name, hidden=4)
        self.train(2)
        self.manager.blend("holds", steps=1)
        self.train(1)
        self.manager.blend("blends", steps=4)
        self.train(2)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.update()
            self.manager.step()

    def update(self) -> None:
        self.optimizer.zero_grad()
        self.host(self.x).square().mean().backward()
        self.optimizer.step()

    def look(self) -> dict[str, Any]:
        """All that matters, without the identities of objects."""
        names = {id(p): name for name, p in self.host.named_parameters()}
        manager, lifecycle = self.manager, self.manager._lifecycle
        return {
            "seeds": {n: (s.stage, s.alpha, s.paused, s.ramp_step) for n, s in manager.seeds.items()},
            "code": {n: region.code for n, region in self.host.regions.items()},
            "phase": self.host.phase,
            "state": frozen(dict(self.host.state_dict())),
            "requires grad": {n: p.requires_grad for n, p in self.host.named_parameters()},
            "groups": [
                [names.get(id(p), "a stranger") for p in g["params"]] for g in self.optimizer.param_groups
            ],
            "optimizer": sorted(names.get(id(p), "a stranger") for p in self.optimizer.state),
            "owned": {n: len(lifecycle.registry.parameters(n)) for n in manager.seeds},
            "watched": sorted(lifecycle.gradients._watched),
            "departing": sorted(lifecycle.departing),
            "borrowed": self.host._links.borrowed,
            "step": manager._reporter.step,
            "output": self.host(self.x).detach(),
        }


Call = Callable[[World, Path], Any]


def measured(world: World) -> None:
    world.manager.measure("learns", lambda: world.host(world.x).square().mean())


def shadowed(world: World) -> None:
    with world.manager.shadow():
        world.host(world.x).square().mean().backward()


CALLS: dict[str, Call] = {
    "germinate": lambda w, f: w.manager.germinate("2", "mlp", name="new", hidden=4),
    "blend": lambda w, f: w.manager.blend("learns", steps=3),
    "cull": lambda w, f: w.manager.cull("blends"),
    "cull, not waiting": lambda w, f: w.manager.cull("blends", wait=False),
    "cull all": lambda w, f: w.manager.cull_all(),
    "fossilize": lambda w, f: w.manager.fossilize("holds"),
    "pause": lambda w, f: w.manager.pause("learns"),
    "step": lambda w, f: w.manager.step(),
    "command": lambda w, f: w.manager.handle({"type": "CULL", "seed": "learns"}),
    "measure": lambda w, f: measured(w),
    "shadow": lambda w, f: shadowed(w),
    "save": lambda w, f: w.manager.save(f / "run.fxgraft"),
}
CHANGES_NOTHING = {"measure", "shadow", "save"}


class Interrupt:
    """Counts the lines of the library that run inside, and sends SIGINT at one of them."""

    def __init__(self, at: int | None):
        self.at, self.lines = at, 0

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY) or frame.f_code.co_filename == MECHANISM:
            return None
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if event == "line" and not text.startswith("with "):
            self.lines += 1
            if self.lines == self.at:
                signal.raise_signal(signal.SIGINT)
        return self.trace

    def __enter__(self) -> Interrupt:
        self._before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *raised: object) -> None:
        sys.settrace(self._before)


def lines_to_try(count: int, name: str) -> list[int]:
    every = range(1, count + 1)
    return list(every) if SAMPLE is None else sorted(random.Random(name).sample(every, min(SAMPLE, count)))


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_interrupted_is_done_or_undone(name: str, tmp_path: Path) -> None:
    call = CALLS[name]
    for _ in range(2):  # the first time more is done: imports, caches
        whole = World()
        before = whole.look()
        with Interrupt(None) as counted:
            call(whole, tmp_path)
    after = whole.look()
    assert counted.lines > 5
    handler = signal.getsignal(signal.SIGINT)
    done = undone = 0
    for line in lines_to_try(counted.lines, name):
        world = World()
        world.look()  # as before
        with pytest.raises(KeyboardInterrupt), Interrupt(line):
            call(world, tmp_path)
        assert signal.getsignal(signal.SIGINT) is handler
        found = world.look()
        if name in CHANGES_NOTHING or not same(found, after):
            assert_same_bits(found, before, f"{name} interrupted at line {line} of {counted.lines}")
            undone += 1
            call(world, tmp_path)  # can be said again
            assert_same_bits(world.look(), before if name in CHANGES_NOTHING else after, "the second time")
        else:
            done += 1
        world.train(1)
    print(f"{name}: {counted.lines} lines; {done} done, {undone} undone")


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    try:
        assert_same_bits(a, b)
    except AssertionError:
        return False
    return True


def test_an_interrupted_load_leaves_a_host_that_can_be_loaded_into(tmp_path: Path) -> None:
    file = tmp_path / "run.fxgraft"
    saved = World()
    saved.manager.save(file)
    expected = saved.look()["output"]

    def fresh() -> tuple[fxgraft.Host, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        host = fxgraft.trace(model, (saved.x,))
        return host, torch.optim.SGD(host.parameters(), 0.1, momentum=0.9)

    for _ in range(2):
        host, optimizer = fresh()
        with Interrupt(None) as counted:
            SeedManager.load(file, host, optimizer)
    for line in lines_to_try(counted.lines, "load"):
        host, optimizer = fresh()
        with pytest.raises(KeyboardInterrupt), Interrupt(line):
            SeedManager.load(file, host, optimizer)
        if host.structure.placements:  # it was done
            assert_same_bits(host(saved.x).detach(), expected)
        else:
            SeedManager.load(file, host, optimizer)
            assert_same_bits(host(saved.x).detach(), expected)


def test_a_long_constructor_is_interrupted_at_once() -> None:
    world = World()
    before = world.look()

    def slow(slot: fxgraft.Slot) -> nn.Module:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        world.manager.germinate("2", slow)
    assert_same_bits(world.look(), before)


def test_interrupts_wait_and_come_later() -> None:
    log: list[str] = []

    def work() -> None:
        with delay_interrupts():
            signal.raise_signal(signal.SIGINT)
            log.append("went on")
        log.append("not this")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert log == ["went on"]


def test_interrupts_come_where_they_may() -> None:
    log: list[str] = []

    def work() -> None:
        try:
            with interruptible():
                signal.raise_signal(signal.SIGINT)
                log.append("not this")
        finally:
            signal.raise_signal(signal.SIGINT)
            log.append("undone in peace")

    with pytest.raises(KeyboardInterrupt), delay_interrupts():
        work()
    assert log == ["undone in peace"]
    with interruptible(), delay_interrupts(), delay_interrupts():
        pass


def test_a_handler_of_the_users_own_gets_the_interrupt() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
    try:
        with delay_interrupts():
            signal.raise_signal(signal.SIGINT)
            assert not got
        assert got == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.HOLDING])
def test_the_seed_of_an_interrupted_cull_leaves_no_trace(stage: Stage) -> None:
    """After the swap nothing fails any more: the optimizer forgets the seed in any case."""
    world = World()
    name = {Stage.TRAINING: "learns", Stage.HOLDING: "holds"}[stage]
    leave = world.manager.registry.leave

    def interrupted(parameters: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        leave(parameters)

    world.manager.registry.leave = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        world.manager.cull(name)
    known: set[Tensor] = set(world.host.parameters())
    assert set(world.optimizer.state) <= known
    assert {p for group in world.optimizer.param_groups for p in group["params"]} == known
