"""Run what is missing, then write the summary: ``make worth``, or

    python -m benchmarks.worth [--protocol short|full|unknown] [--workload gpt|cnn|thin] [--only ARM ...]
        [--seeds N ...] [--minutes M]
    python -m benchmarks.worth --quick       # does everything run? five minutes, nothing is kept
    python -m benchmarks.worth --list        # what is missing
    python -m benchmarks.worth --report      # only the summary and the plot, from the results that are there

Stopped in any way, it goes on where it was. Results go to runs/worth/results, and are compared with the
committed ones at the end; --out benchmarks/results is for those who commit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.worth import results, summary
from benchmarks.worth.arms import arms
from benchmarks.worth.budgeted import BudgetedTrainer
from benchmarks.worth.plan import plan_of
from benchmarks.worth.prepare import DataError
from benchmarks.worth.progress import Progress
from benchmarks.worth.protocols import PROTOCOLS, Protocol
from benchmarks.worth.training import Run, Trainer
from benchmarks.worth.workloads import Workload, workload

COMMITTED = Path(__file__).parent.parent / "results"
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "worth.png"
RESULTS = Path("runs/worth/results")
SCRATCH = Path("runs/worth/states")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worth", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--protocol", choices=[name for name in PROTOCOLS if name != "quick"], default="short"
    )
    parser.add_argument("--workload", choices=["gpt", "cnn", "thin"], help="one of them; all unless given")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="runs of these arms alone")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="runs of these random seeds alone")
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are, and go")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of each arm, in a folder that is thrown away"
    )
    parser.add_argument("--list", action="store_true", help="tell what is missing, run nothing")
    parser.add_argument("--report", action="store_true", help="only write the summary and the plot anew")
    options = parser.parse_args()
    torch.set_num_threads(1)  # one process is one core: CPU time is then comparable
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            carry(PROTOCOLS["quick"], options, Path(folder), Path(folder) / "states")
        return
    carry(PROTOCOLS[options.protocol], options, options.out, SCRATCH)


def carry(protocol: Protocol, options: argparse.Namespace, out: Path, scratch: Path) -> None:
    """Run what is missing, as far as the options ask for it, and write the summary into ``out``."""
    names = [options.workload] if options.workload else list(protocol.scales)
    if options.list:
        tell(protocol, names, out, options)
        return
    if not options.report:
        until = time.monotonic() + 60 * options.minutes if options.minutes else None
        for name in names:
            try:
                task = workload(name, protocol.scales[name])
            except DataError as error:
                print(f"{name} is left out. {error}")
                continue
            run_all(protocol, task, out, scratch / protocol.name, options, until)
    ours = out.resolve() == COMMITTED.resolve()
    summary.write(protocol, out, PICTURE if ours else out / "worth.png")
    if not ours:
        print(results.compared(results.of(protocol, out), results.of(protocol, COMMITTED)))


def run_all(
    protocol: Protocol,
    task: Workload,
    out: Path,
    scratch: Path,
    options: argparse.Namespace,
    until: float | None,
) -> None:
    """Run what is missing of one workload, one run after the other."""
    machine = {
        **environment.describe(),
        "shared": "CPU time is of this process alone; caches and memory were shared",
    }
    failed: set[str] = set()
    progress = Progress(protocol, task)
    while until is None or time.monotonic() < until:
        missing = wanted(plan_of(protocol, task.name, results.of(protocol, out)).missing(), options)
        left = [run for run in missing if run.name not in failed]
        if not left:
            break
        run = left[0]
        progress.begin(run, left)
        try:
            arm = arms(protocol, task.name)[run.arm]
            record = (BudgetedTrainer if arm.budgeted else Trainer)(run, arm, task, scratch).train()
        except Exception as error:  # one arm that cannot run does not hide the others
            failed.add(run.name)
            print(f"{run.name} FAILED: {type(error).__name__}: {error}", flush=True)
            continue
        results.write(results.folder(protocol, out), stamped(record, machine, protocol))
        progress.end(record)
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(sorted(failed))}")


def stamped(record: dict[str, Any], machine: dict[str, Any], protocol: Protocol) -> dict[str, Any]:
    """With where it comes from, and how to repeat it."""
    run = record["run"]
    command = f"python -m benchmarks.worth --protocol {protocol.name}"
    command += f" --workload {run['workload']} --only {run['arm']}"
    return {"command": command, "environment": machine, "protocol": protocol.name, **record}


def wanted(runs: list[Run], options: argparse.Namespace) -> list[Run]:
    """Those of the arms and random seeds that were asked for."""
    return [
        run
        for run in runs
        if (options.only is None or run.arm in options.only)
        and (options.seeds is None or run.seed in options.seeds)
    ]


def tell(protocol: Protocol, names: list[str], out: Path, options: argparse.Namespace) -> None:
    """What is missing; runs that depend on results to come are not among them yet."""
    for name in names:
        for run in wanted(plan_of(protocol, name, results.of(protocol, out)).missing(), options):
            print(run.name)


if __name__ == "__main__":
    main()
