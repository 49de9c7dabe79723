"""What `autogrow` makes of a host, by the score that it chooses by.

    python -m benchmarks.explore.growing [--workloads Narrow ...] [--parts FILE] [--write]

Decided before anything ran. Each workload is trained from its initialisation for ``STEPS`` steps: the
learning rate is constant for ``STEADY`` of them, while the host may grow, then it falls linearly to zero
and nothing grows any more. An arm is a score; ``none`` does not grow. Everything else is `autogrow`'s
default, with a budget of ``BUDGET`` times the parameters, and ``PATIENCE`` rounds without a gain. Growth
sees one half of the held-out batches, the other half judges: the mean loss at the end. Every arm of a
random seed has the same initialisation and order of batches.

    gain       the loss of ``none`` minus that of the arm, as a share of the former, in the same random seed
    default    of `autogrow`: the score with the highest mean gain over the workloads; within one standard
               error of the present default (``expected_times_parameters``) that one stays

``Narrow`` lacks hidden units: 4, where 64 are too many. ``Roomy`` has 64: there is nothing to gain, and
growth should do no harm. The others are those of the benchmark of scores (`benchmarks.explore.networks`).

A first run (``Narrow`` and ``Roomy``, six random seeds) showed that growth harmed ``Roomy``: the loss was
higher by 20 to 25 % with every score, since what was kept had only been got used to. `autogrow` keeps less
since: the held-out loss has to be lower than before the candidate was tried, too. All arms run with that.
It did not help there: with a branch behind the layer the host learns the training data by heart, and with a
layer twice as wide it does not. So ``layers_first`` was added, before any other workload was looked at:
what widens or deepens layers and contributes anything goes before branches.

Added when the results were known: the arm ``trials`` is ``layers_first`` with a ``gain`` that nothing can
reach. It explores and tries, and takes everything out again. What it gains is no gain of a larger network: a
host that trains for a while with a part, and then without it, is another one, too.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxgraft
from benchmarks.environment import as_markdown, describe
from benchmarks.explore.networks import WORKLOADS, Workload
from benchmarks.explore.plan import BATCH, LEARNING_RATE, WEIGHT_DECAY
from fxgraft.explore import Row
from fxgraft.explore.scoring import Score, expected_times_parameters

COMMAND = "python -m benchmarks.explore.growing"
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "explore.md"
BEGIN, END = "<!-- growing: begin -->", "<!-- growing: end -->"
RESULTS = Path(__file__).parents[1] / "results" / "growing"
ARMS = (
    "none",
    "expected_times_parameters",
    "contribution",
    "large_contribution_first",
    "layers_first",
    "parameters",
    "trials",
)
PRESENT = "expected_times_parameters"
BUDGET, PATIENCE = 3.0, 3
LARGE = 0.05
"""A contribution is large above this share of the loss, and two standard errors."""
UNREACHABLE = 1e6
"""As a share of the loss."""
RANDOM_SEEDS = {"Narrow": 6, "Roomy": 6, "MLP": 6, "CNN": 6, "GPT": 3}
STEPS = {"Narrow": 2000, "Roomy": 2000, "MLP": 2000, "CNN": 2000, "GPT": 1000}
STEADY = 0.7

HEAD = """# What automatic growth gains, by the score that it chooses by

`python -m benchmarks.explore.growing`; what was decided before it ran is in `benchmarks/explore/growing.py`.
"""
TEXT = """The loss at the end on data that the growth did not see: by what share it is lower than without
growth (mean and standard error of the mean over random seeds), and in brackets the size, as a factor of the
parameters. `trials` is `layers_first` with everything that is tried taken out again: a control that was added
when the other results were known. Its runs have an environment of their own in the JSON file."""


def _perceptron(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


GROWN: Mapping[str, Workload] = {
    "Narrow": replace(WORKLOADS["MLP"], make=lambda: _perceptron(4), candidates=()),
    "Roomy": replace(WORKLOADS["MLP"], make=lambda: _perceptron(64), candidates=()),
    **{name: WORKLOADS[name] for name in ("MLP", "CNN", "GPT")},
}


def _large_first(row: Row) -> float | None:
    """``large_contribution_first``: what contributes much, by that; then the rest."""
    if row.helps and row.contribution and row.loss and row.contribution > LARGE * abs(row.loss):
        return 1e12 * (1 + row.contribution)
    return expected_times_parameters(row)


def run(name: str, seed: int, arm: str) -> dict[str, Any]:
    """One run to its end."""
    workload, steps = GROWN[name], STEPS[name]
    rate = LEARNING_RATE.get(name, LEARNING_RATE["MLP"])
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def batch() -> tuple[Tensor, Tensor]:
        return workload.batch(generator, BATCH.get(name, BATCH["MLP"]))

    host = fxgraft.trace(workload.make(), (batch()[0],))
    optimizer = torch.optim.AdamW(host.parameters(), rate, weight_decay=WEIGHT_DECAY)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    held_out = workload.held_out()

    @torch.no_grad()
    def losses(first: int) -> list[float]:
        host.eval()
        found = [float(workload.loss(host(x), y)) for x, y in held_out[first::2]]
        host.train()
        return found

    began = time.process_time()
    growth = None
    if arm != "none":
        options = {"gain": UNREACHABLE} if arm == "trials" else {}
        growth = manager.autogrow(
            lambda: losses(0), budget=BUDGET, patience=PATIENCE, score=SCORES.get(arm, arm), **options
        )
    for step in range(steps):
        if growth is not None and step == int(STEADY * steps) and not growth.done:
            growth.stop()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (1 - step / steps) / (1 - STEADY))
        x, y = batch()
        optimizer.zero_grad()
        loss = workload.loss(host(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        manager.step(loss)
    return {
        "loss": statistics.fmean(losses(1)),
        "parameters": sum(p.numel() for p in host.parameters()),
        "seconds": time.process_time() - began,
        "history": [] if growth is None else growth.history,
    }


SCORES: Mapping[str, Score] = {"large_contribution_first": _large_first, "trials": "layers_first"}


def gains_of(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The gain of each arm on each workload, with its standard error."""
    found: dict[str, Any] = {}
    for name, many in RANDOM_SEEDS.items():
        seeds = [s for s in range(many) if all(f"{name} {s} {arm}" in records for arm in ARMS)]
        if not seeds:
            continue
        bare = [records[f"{name} {s} none"]["loss"] for s in seeds]
        size = records[f"{name} {seeds[0]} none"]["parameters"]
        found[name] = {"random_seeds": len(seeds), "loss": statistics.fmean(bare), "gain": {}}
        for arm in ARMS[1:]:
            ends = [records[f"{name} {s} {arm}"] for s in seeds]
            gains = [(b - one["loss"]) / b for b, one in zip(bare, ends, strict=True)]
            found[name]["gain"][arm] = {
                "mean": statistics.fmean(gains),
                "standard_error": statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None,
                "size": statistics.fmean(one["parameters"] for one in ends) / size,
            }
    return found


def lines_of(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The gains as the lines of a table."""
    lines = [
        f"| workload | random seeds | loss without growth | {' | '.join(f'`{arm}`' for arm in ARMS[1:])} |"
    ]
    lines.append("|---" * (len(ARMS) + 2) + "|")
    for name, of_one in found.items():
        gains = [of_one["gain"][arm] for arm in ARMS[1:]]
        cells = [f"{g['mean']:.1%} ± {g['standard_error']:.1%} ({g['size']:.2f})" for g in gains]
        lines.append(f"| {name} | {of_one['random_seeds']} | {of_one['loss']:.3f} | {' | '.join(cells)} |")
    return lines


def into_page(text: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of the page with this table in it."""
    head, _, rest = text.partition(BEGIN)
    table = "\n".join(lines_of(found))
    return f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def write(parts: Path) -> None:
    """The results, from the parts, and the table in the page."""
    records = {line["key"]: line for line in map(json.loads, parts.read_text().splitlines())}
    found = gains_of(records)
    environment = next(iter(records.values()))["environment"]
    commit = environment["commit"]
    runs = [
        {k: v for k, v in record.items() if k != "environment" or v["commit"] != commit}
        for record in records.values()
    ]
    data = {"command": COMMAND, "environment": environment, "workloads": found, "runs": runs}
    RESULTS.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    page = [HEAD, as_markdown(environment) + ".", "", TEXT, "", *lines_of(found), ""]
    RESULTS.with_suffix(".md").write_text("\n".join(page))
    PAGE.write_text(into_page(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explore.growing", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=list(GROWN), default=list(GROWN))
    parser.add_argument("--parts", type=Path, default=Path("runs") / "growing.jsonl")
    parser.add_argument("--write", action="store_true", help="run nothing; make the results from the parts")
    options = parser.parse_args()
    if options.write:
        return write(options.parts)
    torch.set_num_threads(1)
    options.parts.parent.mkdir(parents=True, exist_ok=True)
    lines = options.parts.read_text().splitlines() if options.parts.exists() else []
    done = {json.loads(line)["key"] for line in lines}
    with options.parts.open("a") as file:
        for name in options.workloads:
            for seed in range(RANDOM_SEEDS[name]):
                for arm in ARMS:
                    if (key := f"{name} {seed} {arm}") not in done:
                        line = {"key": key, **run(name, seed, arm), "environment": describe()}
                        file.write(json.dumps(line) + "\n")
                        file.flush()
    return None


if __name__ == "__main__":
    main()
