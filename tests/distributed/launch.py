"""Starts a worker script on several ranks, over gloo, on this machine.

The ranks are forked: most of the time of a worker that is started by torchrun goes into imports.
(test_guide.py starts its program with torchrun.)
"""

from __future__ import annotations

import ast
import os
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.forks import FORKS, redirect

HERE = Path(__file__).parent
DEADLINE = 600.0


def launch(script: str, ranks: int, *args: str | os.PathLike[str]) -> str:
    """Run ``tests/distributed/<script>`` on ``ranks`` processes, as torchrun does; return what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [str(Path(folder) / str(rank)) for rank in range(ranks)]
        argv = [str(HERE / script), *map(str, args)]
        started = [
            FORKS.Process(target=_rank, args=(argv, {**common, "RANK": rank, "LOCAL_RANK": rank}, output))
            for rank, output in enumerate(outputs)
        ]
        for process in started:
            process.start()
        _wait(started)
        told, errors = ([Path(o + end).read_text() for o in outputs] for end in (".out", ".err"))
    codes = [process.exitcode for process in started]
    ends = (f"rank {r}, exit code {codes[r]}:\n{errors[r][-4000:]}" for r in range(ranks))
    assert codes == [0] * ranks, "\n".join([*told, *ends])
    return "\n".join(told)


def _wait(started: Sequence[BaseProcess]) -> None:
    """Until all have ended, or one has failed, or the time is up; then none is left."""
    until = time.monotonic() + DEADLINE
    while any(p.is_alive() for p in started) and time.monotonic() < until:
        if any(p.exitcode for p in started):
            until = min(until, time.monotonic() + 5)  # the others say what they miss
        time.sleep(0.05)
    for process in started:
        process.kill()
        process.join()


def _rank(argv: Sequence[str], environment: Mapping[str, object], output: str) -> None:
    redirect(output, environment)
    sys.argv[:] = argv
    runpy.run_path(argv[0], run_name="__main__")


def cases(worker: str) -> set[str]:
    """What a worker has to pass: its public functions that take nothing."""
    tree = ast.parse((HERE / worker).read_text(encoding="utf-8"))
    named = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.args.args}
    return {name for name in named if name != "main" and not name.startswith("_")}


def passed(told: str) -> set[str]:
    """What a worker said it has passed."""
    return {line.split()[1] for line in told.splitlines() if line.startswith("ok ")}
