"""Runs one benchmark in a process of its own, and shows how far it is."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import ModuleType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import (
    bench_alternatives,
    bench_changes,
    bench_cycles,
    bench_dormant,
    bench_edit,
    bench_germination,
    bench_growth,
    bench_memory,
    bench_peft,
    bench_seeds,
)
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Clock, Meter

BENCHMARKS: dict[str, ModuleType] = {
    "dormant": bench_dormant,
    "seeds": bench_seeds,
    "germination": bench_germination,
    "changes": bench_changes,
    "edit": bench_edit,
    "memory": bench_memory,
    "cycles": bench_cycles,
    "peft": bench_peft,
    "alternatives": bench_alternatives,
    "growth": bench_growth,
}
THREADS = 1
"""Of torch, in the process that measures: on two cores one is free for the helper that compiles."""
QUICK = Clock(repeats=3, rounds=3, steps=3)


@dataclass(frozen=True)
class Options:
    """What the command line says, in a form that another process can be given."""

    quick: bool = False
    repeats: int = 5
    workloads: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()

    def settings(self, say: Callable[[str], None], meter: Meter | None = None) -> Settings:
        """For a benchmark."""
        meter = meter or (QUICK if self.quick else Clock())
        repeats = min(self.repeats, 1) if self.quick else self.repeats
        return Settings(meter, repeats, self.quick, self.workloads, self.modes, say=say)


def run(name: str, options: Options, console: Console) -> list[Row] | None:
    """The rows of one benchmark; None if it failed, which the console is told."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, options, sender))
    process.start()
    sender.close()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    rows: list[Row] = []
    error = "it ended without a word"
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=None)
        while True:
            try:
                kind, value = receiver.recv()
            except EOFError:
                break
            if kind == "say":
                progress.update(task, description=f"{name}: {value}")
            elif kind == "row":
                rows.append(value)
            else:
                error = value
        process.join()
        total = max(len(rows), 1)
        progress.update(task, description=f"{name}: {len(rows)} rows", total=total, completed=total)
    if error:
        console.print(f"{name}: {error}", style="red", markup=False)
        return None
    return rows


def _work(name: str, options: Options, sender: Connection) -> None:
    torch.set_num_threads(THREADS)
    try:
        for row in BENCHMARKS[name].rows(options.settings(lambda text: sender.send(("say", text)))):
            sender.send(("row", row))
        sender.send(("error", ""))
    except Exception:
        sender.send(("error", traceback.format_exc()))
