"""Processes that are forked from one that has imported torch and fxgraft once.

Most of the time of a process that is started anew goes into these imports.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch._inductor.compile_fx",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
        "fxgraft.training",
        "tests.checkpoint.writer",
    ]
)


def redirect(output: str, environment: Mapping[str, object]) -> None:
    """Of this process: what it prints goes to ``output.out`` and ``output.err``."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    for end, number in ((".out", 1), (".err", 2)):
        os.dup2(os.open(output + end, os.O_WRONLY | os.O_CREAT), number)


def run_program(program: str, **environment: object) -> str:
    """Run a program in a process of its own; return what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "process")
        process = FORKS.Process(target=_program, args=(program, output, environment))
        process.start()
        process.join(300)
        process.kill()
        process.join()
        told, errors = (Path(output + end).read_text() for end in (".out", ".err"))
    assert process.exitcode == 0, errors[-3000:]
    return told


def _program(program: str, output: str, environment: Mapping[str, object]) -> None:
    redirect(output, environment)
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
