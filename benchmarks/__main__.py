"""Measure what the design limits, and write it down.

    python -m benchmarks [--quick] [--only NAME ...] [--resume] [--profile] [--render] [--out DIR]

Each benchmark runs in a process of its own, one after the other, on one thread of torch. ``--only`` measures
anew what it names and leaves the other results as they are; ``--resume`` leaves out what was measured at this
commit already. Each is written as soon as it is done, with the load of the machine before it. ``--profile``
prints where the time goes instead (narrow it: ``--only seeds --workloads MLP-12 --modes eager``).
``--render`` measures nothing: it writes the Markdown page, the plots and the table of docs/measurements.md
from the JSON. ``--quick`` is a smoke test.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import plots, report
from benchmarks.environment import describe
from benchmarks.modes import MODES
from benchmarks.record import Part, Record
from benchmarks.runner import BENCHMARKS, THREADS, Options, run
from benchmarks.timing import Profiler
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path("runs") / "benchmarks"
PAGE = Path(__file__).parent.parent / "docs" / "measurements.md"


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 if a benchmark failed. A missed budget is a result, not a failure."""
    options = _parse(arguments)
    out = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    console = Console()
    if options.render:
        render(Record.read(out), out)
        return 0
    chosen = Options(options.quick, options.repeats, tuple(options.workloads), tuple(options.modes))
    if options.profile:
        torch.set_num_threads(THREADS)
        for name in options.only:
            list(
                BENCHMARKS[name].rows(
                    chosen.settings(lambda text: None, Profiler(console.print, options.steps))
                )
            )
        return 0
    record, failed = Record.read(out), []
    command = " ".join(["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    for name in options.only:
        if options.resume and name in record.parts and _is_of_now(record.parts[name]):
            console.print(f"{name}: measured at this commit already")
            continue
        began = time.monotonic()
        environment = describe() | {"torch_threads": THREADS}  # of the process that measures
        rows = run(name, chosen, console)
        if rows is None:
            failed.append(name)
            continue
        minutes = round((time.monotonic() - began) / 60, 2)
        record = record.with_part(name, Part(command, environment, minutes, tuple(rows)), BENCHMARKS)
        record.write(out)
    report.write(record, out)
    plots.draw(record, out)
    console.print(Markdown(report.summary(record)))
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red")
    return bool(failed)


def _is_of_now(part: Part) -> bool:
    """Whether a part was measured at this very commit."""
    commit = describe()["commit"]
    return bool(part.environment["commit"] == commit) and commit != "unknown" and "+" not in commit


def render(record: Record, out: Path) -> None:
    """Everything that follows from the JSON."""
    report.write(record, out)
    plots.draw(record, out)
    if out == RESULTS:
        PAGE.write_text(report.into_page(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = list(BENCHMARKS)
    parser.add_argument(
        "--only", nargs="+", choices=every, default=every, metavar="NAME", help=", ".join(every)
    )
    parser.add_argument("--resume", action="store_true", help="leave out what this commit has results of")
    parser.add_argument("--quick", action="store_true", help=f"little of everything; into {QUICK_RESULTS}")
    parser.add_argument("--repeats", type=int, default=5, help="of what can be done once only")
    parser.add_argument("--workloads", nargs="+", choices=[*WORKLOADS, "small MLP", "modular"], default=[])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[])
    parser.add_argument("--profile", action="store_true", help="say where the time goes; writes nothing")
    parser.add_argument("--steps", type=int, default=50, help="of each side, with --profile")
    parser.add_argument("--render", action="store_true", help="the pages and plots from the JSON")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.name}/ beside the benchmarks")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
