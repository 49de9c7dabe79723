"""No fork comes while a thread is inside of the dynamic linker."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fxgraft.compiling import linking
from tests.manager.test_background import World

ROOT = Path(__file__).parents[2]


@contextmanager
def loading(seconds: float | None = None) -> Iterator[None]:
    """Another thread is loading code: for so long, or while this context lasts."""
    began, ends = threading.Event(), threading.Event()

    def load() -> None:
        with linking.quiet:
            began.set()
            ends.wait(seconds)

    thread = threading.Thread(target=load)
    thread.start()
    began.wait()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def forked() -> int:
    """The exit status of a child in which a thread can load code."""
    child = os.fork()
    if child == 0:
        free: list[bool] = []
        thread = threading.Thread(target=lambda: free.append(linking.quiet.acquire(timeout=5)))
        thread.start()
        thread.join()
        os._exit(0 if free == [True] else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_waits_for_a_thread_that_loads() -> None:
    began = time.monotonic()
    with loading(0.3):
        assert linking.is_busy()
        assert forked() == 0
        assert time.monotonic() - began >= 0.3
    assert not linking.is_busy()
    assert forked() == 0


def test_what_ends_threads_is_loaded_before_a_fork(tmp_path: Path) -> None:
    """As glibc's own log has it: libc opens libgcc_s, in the parent."""
    program = (
        "import os, fxgraft.compiling.linking\nif os.fork() == 0: os._exit(0)\nos.wait(); print(os.getpid())"
    )
    env = {**os.environ, "LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(tmp_path / "log")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    log = (tmp_path / f"log.{int(done.stdout)}").read_text(errors="replace")
    assert [line for line in log.splitlines() if "opening file" in line and "libgcc_s" in line]


@pytest.mark.usefixtures("fresh_compiler")
def test_a_step_does_not_wait_for_code_that_loads_but_forks_later() -> None:
    world = World()
    seed = world.manager.germinate("0.relu", "mlp", name="a", wait=False)
    with loading():
        world.background.wait(60)
        world.train(3)
        assert world.background._job is None  # nothing was forked, and no step stood still
    world.settle()
    assert seed.stage.name == "TRAINING"
    assert world.reasons() == []
