"""The terminal while the runs go on: the screen of `fxgraft watch`; lines where the output is a file."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from fxgraft.demo._training import Record
from fxgraft.report.screen import Tail, screen


def follow(running: list[Future[Record]], log: Path, console: Console) -> list[Record]:
    """Wait for all runs; show how far they are, and the run that writes ``log``. Return what they came to."""
    tail, done = Tail(log), 0
    waiting = set(running)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while waiting:
            finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for run in finished:
                done += 1
                print_run(run.result(), done, len(running), console)
            if console.is_terminal and tail.look():
                live.update(
                    Group(f"{done} of {len(running)} runs are done", screen(tail.reader.run)), refresh=True
                )
    tail.close()
    return [run.result() for run in running]


def print_run(record: Record, done: int, of: int, console: Console) -> None:
    """Print that a run is over, in a line."""
    console.print(
        f"run {done:>2} of {of}: {record.arm:<8}  random seed {record.random_seed}  test loss "
        f"{record.test_loss:.3f}  {record.parameters:,} parameters  {record.steps:,} steps",
        soft_wrap=True,
    )
