"""Measure which score tells where to grow.

    python -m benchmarks.explore [--workloads MLP CNN GPT] [--kinds truth born] [--parts FILE] [--write]

Each part that is done is appended to FILE at once; what is there is not run again, so it can be stopped and
gone on with. ``--write`` runs nothing: it makes ``benchmarks/results/explore.json`` and ``.md``. If FILE has
no truth of a workload, that of the results that are there counts, with its other scores: so a new score at
birth needs ``--kinds born`` only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import describe
from benchmarks.explore import runs
from benchmarks.explore.networks import WORKLOADS
from benchmarks.explore.plan import EXPLORED, RADII, RANDOM_SEEDS
from benchmarks.explore.steps import steps

KINDS = ("truth", "born", "explored", "shadow")

Part = tuple[str, Callable[[], dict[str, Any]]]


def parts_of(name: str) -> Iterator[Part]:
    """Key and work of each part; random seed by random seed, so that what is done can be looked at."""
    candidates = WORKLOADS[name].candidates
    for seed in range(RANDOM_SEEDS[name]):
        key = f"{name} {seed}"
        yield f"{key} truth none", lambda seed=seed: runs.truth(name, seed, None)
        for i, c in enumerate(candidates):
            yield f"{key} truth {i}", lambda seed=seed, c=c: runs.truth(name, seed, c)
        yield f"{key} born", lambda seed=seed: runs.at_birth(name, seed)
        for radius in RADII:
            yield f"{key} explored {radius}", lambda seed=seed, r=radius: runs.exploration(name, seed, r)
    for seed in range(RANDOM_SEEDS[name]):  # last: a control that takes long
        key = f"{name} {seed}"
        for i, c in enumerate(candidates):
            yield f"{key} shadow {i}", lambda seed=seed, c=c: runs.shadowed(name, seed, c, EXPLORED[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explore", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--parts", type=Path, nargs="+", default=[Path("runs") / "explore.jsonl"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="run these parts only")
    parser.add_argument("--steps", action="store_true", help="measure what a step costs, and nothing else")
    parser.add_argument("--write", action="store_true", help="run nothing; make the results from the parts")
    options = parser.parse_args()
    if options.write:
        from benchmarks.explore.results import write

        write(*options.parts)
        return
    (parts,) = options.parts
    torch.set_num_threads(1)
    parts.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if parts.exists():
        done = {json.loads(line)["key"] for line in parts.read_text().splitlines()}
    with parts.open("a") as file:
        if options.steps:
            for size in (64, 128):
                line = {"key": f"steps {size}", **steps(size), "environment": describe()}
                file.write(json.dumps(line) + "\n")
            return
        for name in options.workloads:
            for key, work in parts_of(name):
                if key not in done and key.split()[2] in options.kinds:
                    line = {"key": key, **work(), "environment": describe()}
                    file.write(json.dumps(line) + "\n")
                    file.flush()


if __name__ == "__main__":
    main()
