"""On a machine with a GPU, at most eight minutes: tests there, and what the design limits, in bf16.

    python -m benchmarks.gpu [--only PART ...] [--dry-run] [--out DIR]

Parts: the tests that need a GPU; steps with seeds, a germination and the memory of a step, in bf16 with CUDA
graphs (``mode="reduce-overhead"``), against the same network by hand. Each runs in a process of its own, and
ends with it when its time is up; what was found by then is kept. ``gpu.json`` has the rows and ``gpu.md`` a
table, with the machine, the versions and what was not run. ``--dry-run`` does a little of it on a CPU, in
eager mode: it shows that the script works, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks import bench_germination, bench_memory, bench_seeds
from benchmarks.budgets import PEAK
from benchmarks.environment import describe
from benchmarks.modes import MODES, Mode
from benchmarks.report import table
from benchmarks.rows import Row, Spread
from benchmarks.settings import Settings
from benchmarks.timing import Clock, Samples, Step
from benchmarks.workloads import WORKLOADS, Workload
from fxgraft_passes import devices

SECONDS = 480
"""For everything."""
RESULTS = Path(__file__).parent / "results"
DRY = Path("runs") / "benchmarks"
TESTS = ("-m", "gpu", "tests")
SEEDS = (1, 4)


@dataclass(frozen=True)
class Place:
    """Where it runs, and how.

    Attributes:
        device: of models and data.
        mode: how both sides are compiled.
        quick: whether a little is enough.
    """

    device: torch.device
    mode: Mode
    quick: bool = False

    @property
    def settings(self) -> Settings:
        """For the benchmarks."""
        meter = Waiting(self.device, 1, 1, 1, 1) if self.quick else Waiting(self.device, 5, 6, 20, 10)
        return Settings(meter, repeats=1, quick=self.quick)

    def workloads(self) -> Iterator[Workload]:
        """In bf16, on the device."""
        for name in ("MLP-12",) if self.quick else ("MLP-12", "GPT-2"):
            workload = WORKLOADS[name]
            yield replace(
                workload,
                make=lambda workload=workload: workload.make().to(self.device, torch.bfloat16),
                example=lambda workload=workload: self._there(workload.example()),
            )

    def _there(self, example: Any) -> Any:
        def moved(value: Tensor) -> Tensor:
            return value.to(self.device, torch.bfloat16 if value.is_floating_point() else value.dtype)

        return pytree.tree_map_only(Tensor, moved, example)


@dataclass(frozen=True)
class Waiting(Clock):
    """A clock that waits for the device behind each step."""

    device: torch.device = devices.CPU

    def __init__(self, device: torch.device, repeats: int, rounds: int, steps: int, warm_up: int):
        for name, value in vars(Clock(repeats, rounds, steps, warm_up)).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "device", device)

    def interleaved(self, sides: Mapping[str, Step]) -> dict[str, Samples]:
        return super().interleaved({name: self._waited(step) for name, step in sides.items()})

    def once(self, name: str, do: Step) -> float:
        return super().once(name, self._waited(do))

    def _waited(self, step: Step) -> Step:
        probe = torch.empty((), device=self.device)

        def both() -> None:
            step()
            devices.wait(probe)

        return both


def seeds(place: Place) -> Iterator[Row]:
    """Steps with live seeds, against the same network by hand."""
    for workload in place.workloads():
        yield from bench_seeds.compare(workload, place.mode, SEEDS[: 1 if place.quick else 2], place.settings)


def germination(place: Place) -> Iterator[Row]:
    """What a germination costs the training loop; one repeat."""
    for workload in place.workloads():
        found = bench_germination.measure(workload, place.mode, 1, place.settings)
        yield from bench_germination.tell(workload, place.mode, found)


def memory(place: Place) -> Iterator[Row]:
    """The peak of a step, by the device's own statistics."""
    for workload in place.workloads():
        for stage in bench_seeds.STAGES[: 1 if place.quick else 2]:
            sides = bench_memory.alone, bench_memory.by_hand_alone
            peaks = [_peak(place.device, side(workload, place.mode, SEEDS[-1], stage).step) for side in sides]
            what = f"peak of a step, {SEEDS[-1]} {stage} seeds"
            where = ("memory", workload.name, place.mode.name)
            ours, theirs = (peak / 2**20 for peak in peaks)
            yield Row(
                *where, what, "by hand", Spread.exactly(ours / theirs), "x", PEAK, (ours, theirs), "MiB"
            )


def _peak(device: torch.device, step: Callable[[], object]) -> int:
    if device.type == "cpu":
        return bench_memory.peak(step)
    for _ in range(bench_memory.WARM_UP):
        step()
    return devices.peak_memory(device, step)


PARTS: dict[str, Callable[[Place], Iterator[Row]]] = {
    "seeds": seeds, "germination": germination, "memory": memory,
}  # fmt: skip
LIMITS = {"tests": 150, "seeds": 120, "germination": 120, "memory": 90}
"""Seconds for each part."""


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 where there is no GPU, or a part failed."""
    options = _parse(arguments)
    kind = devices.accelerator()
    if options.part:
        return _part(options.part, Place(torch.device(options.device), _mode(options.device)))
    if kind is None and not options.dry_run:
        print("There is no GPU here. --dry-run shows on a CPU that the script works.", file=sys.stderr)
        return 1
    out = options.out or (DRY if options.dry_run else RESULTS)
    if options.dry_run:
        rows, notes = _dry(options.only), ["a dry run on a CPU: nothing was measured"]
    else:
        rows, notes = _each_in_time(options.only, str(kind))
    _write(out, rows, notes)
    return int(any("failed" in note for note in notes))


def _mode(device: str) -> Mode:
    return MODES["eager" if device == "cpu" else "reduce-overhead"]


def _dry(only: list[str]) -> list[Row]:
    place = Place(devices.CPU, _mode("cpu"), quick=True)
    return [row for name in only if name in PARTS for row in PARTS[name](place)]


def _part(name: str, place: Place) -> int:
    """One part, in a process of its own: a row on each line."""
    for row in PARTS[name](place):
        print(json.dumps(row.as_json()), flush=True)
    return 0


def _each_in_time(only: list[str], device: str) -> tuple[list[Row], list[str]]:
    until = time.monotonic() + SECONDS
    rows: list[Row] = []
    notes: list[str] = []
    for name in only:
        limit = min(LIMITS[name], until - time.monotonic())
        if limit <= 0:
            notes.append(f"{name}: not run, as the time was up")
            continue
        code = ["pytest", "-q", "-p", "no:xdist", *TESTS]
        if name != "tests":
            code = ["benchmarks.gpu", "--part", name, "--device", device]
        print(f"{name}: at most {limit:.0f} s", flush=True)
        said, how = _run([sys.executable, "-m", *code], limit)
        if name == "tests":
            notes.append(f"tests: {how}; {said.strip().splitlines()[-1] if said.strip() else 'no output'}")
            continue
        rows += [Row.from_json(json.loads(line)) for line in said.splitlines() if line.startswith("{")]
        if how:
            notes.append(f"{name}: {how}")
    return rows, notes


def _run(command: list[str], limit: float) -> tuple[str, str]:
    """What it printed, and how it went wrong; empty where it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        return said.decode() if isinstance(said, bytes) else said, f"ended after {limit:.0f} s"
    if not done.returncode:
        return done.stdout, ""
    last = (done.stderr or done.stdout).strip().splitlines()[-1:]
    return done.stdout, f"failed with exit status {done.returncode} ({''.join(last)[:300]})"


def _write(out: Path, rows: list[Row], notes: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    environment = describe()
    record = {"environment": environment, "notes": notes, "rows": [row.as_json() for row in rows]}
    (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    lines = ["# On a GPU", f"{environment['date']}, {environment['gpu'] or 'no GPU'}, {versions}."]
    lines += ["\n".join(f"- {note}" for note in notes)] if notes else []
    page = "\n\n".join([*lines, *([table(rows)] if rows else [])])
    (out / "gpu.md").write_text(page + "\n", encoding="utf-8")
    print(page)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every = ["tests", *PARTS]
    parser.add_argument(
        "--only", nargs="+", choices=every, default=every, metavar="PART", help=", ".join(every)
    )
    parser.add_argument("--dry-run", action="store_true", help=f"a little of everything on a CPU; into {DRY}")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.name}/ beside the benchmarks")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
