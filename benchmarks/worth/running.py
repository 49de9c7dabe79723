"""Makes the runs that are missing, or those that are to be repeated, one after the other."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.worth import results
from benchmarks.worth.arms import arms
from benchmarks.worth.budgeted import BudgetedTrainer
from benchmarks.worth.learner import LibraryError
from benchmarks.worth.learners import KINDS
from benchmarks.worth.plan import plan_of
from benchmarks.worth.prepare import DataError
from benchmarks.worth.progress import Costs, Progress, about
from benchmarks.worth.protocols import Protocol
from benchmarks.worth.results import Records
from benchmarks.worth.training import Run, Trainer
from benchmarks.worth.workloads import Workload, workload


class Runner:
    """Of one workload in one protocol.

    Attributes:
        out: where records go.
        scratch: where the states of unfinished runs are.
        earlier: records that say how fast such runs are.
        failed: names of the runs that ended with an error.
        left_out: likewise of those that need a library which is not installed.
    """

    def __init__(self, protocol: Protocol, task: Workload, out: Path, scratch: Path, earlier: Records):
        self.protocol, self.task, self.out, self.scratch = protocol, task, out, scratch
        self.progress = Progress(Costs(protocol, task), earlier)
        self.failed: list[str] = []
        self.left_out: list[str] = []
        self.machine = {
            **environment.describe(),
            "shared": "CPU time is of this process alone; caches and memory were shared",
        }

    def run_all(self, wanted: Callable[[], list[Run]], until: float | None = None) -> None:
        """Run what ``wanted`` names, asked anew before each run; begin none after ``until``."""
        while until is None or time.monotonic() < until:
            left = [run for run in wanted() if run.name not in (*self.failed, *self.left_out)]
            if not left:
                break
            self.progress.begin(left[0], left)
            self.run(left[0])
        if self.failed:
            print(f"{len(self.failed)} runs failed: {', '.join(sorted(self.failed))}", flush=True)

    def run(self, run: Run) -> None:
        """Make one run and store its record. One that cannot run does not hide the others."""
        try:
            arm = arms(self.protocol, self.task.name)[run.arm]
            kind = BudgetedTrainer if KINDS[arm.how].budgeted else Trainer
            record = kind(run, arm, self.task, self.scratch).train()
        except LibraryError as error:
            self.left_out.append(run.name)
            print(f"{run.name} is left out. {error}", flush=True)
            return
        except Exception as error:
            self.failed.append(run.name)
            print(f"{run.name} FAILED: {type(error).__name__}: {error}", flush=True)
            return
        results.write(results.folder(self.protocol, self.out), stamped(record, self.machine, self.protocol))
        self.progress.end(record)


def stamped(record: dict[str, Any], machine: dict[str, Any], protocol: Protocol) -> dict[str, Any]:
    """With where it comes from, and how to repeat it."""
    run = record["run"]
    command = f"python -m benchmarks.worth --protocol {protocol.name}"
    command += f" --workload {run['workload']} --only {run['arm']} --seeds {run['seed']}"
    return {"command": command, "environment": machine, "protocol": protocol.name, **record}


def missing(protocol: Protocol, name: str, out: Path, options: argparse.Namespace) -> list[Run]:
    """The missing runs of a workload that the options ask for, and whose learning rate is known."""
    return asked(plan_of(protocol, name, results.of(protocol, out)).missing(), options)


def asked(runs: Iterable[Run], options: argparse.Namespace) -> list[Run]:
    """Those of the arms and random seeds that were asked for."""
    return [
        run
        for run in runs
        if (options.only is None or run.arm in options.only)
        and (options.seeds is None or run.seed in options.seeds)
    ]


def workloads(protocol: Protocol, options: argparse.Namespace) -> list[str]:
    """Those of a protocol that were asked for."""
    return [name for name in protocol.scales if options.workload in (None, name)]


def tell(protocol: Protocol, out: Path, options: argparse.Namespace) -> None:
    """What is missing, and about how long it takes."""
    records = results.of(protocol, out)
    for name in workloads(protocol, options):
        runs = missing(protocol, name, out, options)
        later = asked(plan_of(protocol, name, records).waiting(), options)
        for run in runs:
            print(f"{protocol.name} {run.name}")
        for run in later:
            print(f"{protocol.name} {name}-{run.arm}-seed{run.seed}, when its learning rate is chosen")
        what = f"{protocol.name} {name}: {len(runs) + len(later)} runs missing"
        if not runs and not later:
            print(what)
            continue
        try:
            costs = Costs(protocol, workload(name, protocol.scales[name]))
        except DataError as error:
            print(f"{what}. {error}")
            continue
        print(f"{what}, {about(Progress(costs, records).minutes([*runs, *later]))} of one core")
