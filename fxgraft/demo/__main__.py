"""Grow a small GPT on a real text, against fixed sizes of the same FLOPs (five minutes, two idle cores)."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from fxgraft.cost import Measurement
from fxgraft.demo import _plot, _results, _text, _watching
from fxgraft.demo._model import GPT
from fxgraft.demo._training import ARMS, EXPLORED, FULL, GROWN, QUICK, Record, RunLength, run
from fxgraft.report import page

FIRST_SEED = 200
"""Settings were chosen on lower ones: what is reported comes from others."""

LOG = "events.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all arms, write the results, print what they came to."""
    options = _options(arguments)
    settings = QUICK if options.quick else FULL
    console = Console(stderr=options.json, highlight=False, markup=False)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / LOG).unlink(missing_ok=True)  # a sink appends
    began = time.perf_counter()
    random_seeds = range(options.first_seed, options.first_seed + options.seeds)
    # The grown runs first: they take longest, and the first of them is shown.
    jobs = [(arm, random_seed) for arm in reversed(ARMS) for random_seed in random_seeds]
    records = run_all(jobs, settings, options.out, options.processes, console)
    recompiles = None if options.quick else count_recompiles()
    summary = _results.summarize(records, recompiles, time.perf_counter() - began)
    for line in _conclusion(records, summary):
        console.print(line, soft_wrap=True)
    names = _write(records, summary, options.out)
    console.print(f"\nwrote {', '.join(names)} to {options.out}/")
    console.print(
        f"open {options.out / 'report.html'} in a browser: the first grown run, step by step", soft_wrap=True
    )
    if options.json:
        print(json.dumps(summary, indent=2))


def run_all(
    jobs: Sequence[tuple[str, int]], settings: RunLength, out: Path, processes: int, console: Console
) -> dict[str, list[Record]]:
    """All runs, by arm: in this process, or in several. The first job writes the log of its run."""
    folders = [out, *[None] * (len(jobs) - 1)]
    if processes == 1:
        found = []
        for (arm, random_seed), folder in zip(jobs, folders, strict=True):
            found.append(run(arm, random_seed, settings, folder))
            _watching.print_run(found[-1], len(found), len(jobs), console)
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            running = [
                pool.submit(run, *job, settings, folder) for job, folder in zip(jobs, folders, strict=True)
            ]
            found = _watching.follow(running, out / LOG, console)
    return {arm: [record for record in found if record.arm == arm] for arm in ARMS}


def count_recompiles(backend: str = "inductor") -> int:
    """Graphs that are compiled while alpha moves: `fxgraft.cost` on the demo's network."""
    codes, _ = _text.load().batch(0, 0)
    measured = Measurement(GPT(1), (codes,), slot="blocks.0.down", blueprint="mlp", rounds=1, backend=backend)
    return measured.run().recompiles


def _conclusion(records: _results.Records, summary: dict[str, Any]) -> list[str]:
    grown = records[EXPLORED][0]
    return [
        *(line for arm in GROWN for line in (f"\nwhat growth did: {arm}", _results.history(records[arm][0]))),
        "\nthe grown network",
        grown.host,
        "\nwhat it writes",
        grown.sample.strip("\n"),
        "\neach arm, with the same FLOPs",
        _results.table(summary),
        "",
        *_results.facts(summary),
        "",
        *summary["verdict"],
    ]


def _write(records: _results.Records, summary: dict[str, Any], out: Path) -> list[str]:
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _plot.draw(records, out / "loss.png")
    page.write(out / LOG, out / "report.html", "Demo: a grown GPT")
    return [name for name in ("summary.json", "loss.png", "report.html", "host.svg") if (out / name).exists()]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fxgraft.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the results go")
    parser.add_argument("--seeds", type=int, default=3, help="how many random seeds")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="the first of them")
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 4), help="runs at a time")
    parser.add_argument("--quick", action="store_true", help="short runs, nothing compiled: a smoke test")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, the rest to stderr")
    options = parser.parse_args(arguments)
    for name in ("seeds", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected a positive number")
    return options


if __name__ == "__main__":
    main()
