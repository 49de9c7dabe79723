"""Run what is missing, then write the summary: ``make worth``, or

    python -m benchmarks.worth [--protocol short|unknown|unknown_extra|full ...]
        [--workload gpt|brown|long|cnn|thin] [--only ARM ...] [--seeds N ...] [--minutes M]
    python -m benchmarks.worth --quick       # does everything run? nothing is kept
    python -m benchmarks.worth --list        # what the committed results lack, and how long that takes
    python -m benchmarks.worth --repeat [NAME ...]  # committed runs once more: a sample, or those named
    python -m benchmarks.worth --report      # only the summary and the plots, from the results that are there

Stopped in any way, it goes on where it was. Results go to runs/worth/results (of --repeat to
runs/worth/repeated: remove it to begin anew), and are compared with the committed ones at the end: the
exit code is 1 where they differ by more than their error, or a run failed.
--out benchmarks/results is for those who commit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.worth import repeat, results, running, summary
from benchmarks.worth.prepare import DataError
from benchmarks.worth.protocols import PROTOCOLS, Protocol
from benchmarks.worth.running import Runner
from benchmarks.worth.training import Run
from benchmarks.worth.workloads import MAKE, workload

COMMITTED = Path(__file__).parent.parent / "results"
PICTURES = Path(__file__).parents[2] / "docs" / "images"
RESULTS = Path("runs/worth/results")
REPEATED = Path("runs/worth/repeated")
SCRATCH = Path("runs/worth/states")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worth", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=[name for name in PROTOCOLS if name != "quick"],
        default=results.KEPT,
        metavar="P",
        help=f"some of {', '.join(name for name in PROTOCOLS if name != 'quick')}; all but full unless given",
    )
    parser.add_argument("--workload", choices=list(MAKE), help="one of them; all unless given")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="runs of these arms alone")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="runs of these random seeds alone")
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    parser.add_argument(
        "--out", type=Path, help=f"where results are, and go: {RESULTS}; for --list the committed ones"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of each arm, in a folder that is thrown away"
    )
    parser.add_argument("--list", action="store_true", help="tell what is missing, run nothing")
    parser.add_argument(
        "--repeat",
        nargs="*",
        metavar="NAME",
        help="repeat these committed runs; a sample where none is named",
    )
    parser.add_argument("--report", action="store_true", help="only write the summary and the plots anew")
    options = parser.parse_args()
    torch.set_num_threads(1)  # one process is one core: CPU time is then comparable
    if options.repeat is not None:
        sys.exit(not again(options.repeat or repeat.SAMPLE, options.out or REPEATED))
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(not carry([PROTOCOLS["quick"]], options, Path(folder), Path(folder) / "states"))
    out = options.out or (COMMITTED if options.list else RESULTS)
    sys.exit(not carry([PROTOCOLS[name] for name in options.protocol], options, out, SCRATCH))


def carry(protocols: Sequence[Protocol], options: argparse.Namespace, out: Path, scratch: Path) -> bool:
    """Run what is missing, as far as the options ask for it, and write the summary into ``out``.

    False where a run failed, or the results are not those that are committed.
    """
    if options.list:
        for protocol in protocols:
            running.tell(protocol, out, options)
        return True
    until = time.monotonic() + 60 * options.minutes if options.minutes else None
    failed = (
        []
        if options.report
        else [name for each in protocols for name in run(each, options, out, scratch, until)]
    )
    ours = out.resolve() == COMMITTED.resolve()
    for protocol in {summary.owner(each).name: each for each in protocols}.values():
        summary.write(protocol, out, PICTURES if ours else out)
    if ours:
        return not failed
    same = True
    for protocol in protocols:
        committed = results.of(protocol, COMMITTED)
        spread = results.everything(COMMITTED) if protocol.name in results.KEPT else committed
        verdict = repeat.compared(results.of(protocol, out), committed, spread)
        print(f"{protocol.name}: {verdict}")
        same = same and verdict.same
    return same and not failed


def run(
    protocol: Protocol, options: argparse.Namespace, out: Path, scratch: Path, until: float | None
) -> list[str]:
    """Run what is missing of one protocol; the names of the runs that failed."""
    failed: list[str] = []
    for name in running.workloads(protocol, options):
        try:
            task = workload(name, protocol.scales[name])
        except DataError as error:
            print(f"{name} is left out. {error}")
            continue
        runner = Runner(protocol, task, out, scratch / protocol.name, results.of(protocol, COMMITTED))
        runner.run_all(partial(running.missing, protocol, name, out, options), until)
        failed += runner.failed
    return failed


def again(names: Sequence[str], out: Path) -> bool:
    """Make committed runs once more, with their learning rates; compare, and write ``worth_repeat.json``."""
    committed = results.everything(COMMITTED)
    unknown = [name for name in names if name not in committed]
    if unknown:
        raise SystemExit(f"no committed run is named {', '.join(unknown)}; see {COMMITTED / 'worth'}")
    failed: list[str] = []
    for protocol in map(PROTOCOLS.__getitem__, results.KEPT):
        there = results.read(results.folder(protocol, COMMITTED))
        for workload_name, scale in protocol.scales.items():
            runs = [results.run_of(there[name]) for name in names if name in there]
            runs = [run for run in runs if run.workload == workload_name]
            if runs:
                runner = Runner(protocol, workload(workload_name, scale), out, SCRATCH / "again", there)
                runner.run_all(partial(not_in, runs, results.folder(protocol, out)))
                failed += runner.failed
    made = {name: record for name, record in results.everything(out).items() if name in names}
    verdict = repeat.compared(made, committed)
    print(verdict)
    command = " ".join(["python -m benchmarks.worth --repeat", *(names if names != repeat.SAMPLE else ())])
    told = {"command": command, "environment": environment.describe(), **verdict.told()}
    (out / repeat.FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return verdict.same and not failed


def not_in(runs: list[Run], folder: Path) -> list[Run]:
    """Those without a record there."""
    there = results.read(folder)
    return [run for run in runs if run.name not in there]


if __name__ == "__main__":
    main()
