"""A seed's whole life over 100 epochs of scikit-learn's digits: alpha, isolation, memory, metrics.

    python -m benchmarks.soak [--epochs 100] [--cycles 200] [--out FILE]

The host trains alone for a tenth of the epochs; a seed germinates and learns in isolation for two
tenths, is blended in over four, held for two, and culled; the host goes on alone. Then 200 seeds are
germinated and culled (``benchmarks.bench_cycles``). The summary says what happened in each epoch and passes
its own verdicts; the exit code is 1 if one of them fails.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxgraft
from benchmarks import bench_cycles, environment
from benchmarks.digits import BATCH, Digits, load
from benchmarks.footprint import footprint, growth
from fxgraft.seeds.stage import Stage

OUT = Path(__file__).parent / "baselines" / "wp101_germination" / "seed_soak_summary.json"
SLOT, BLUEPRINT = "3", "conv_bottleneck"
CHECK_EVERY = 25
SHARES = {"germinate": 0.1, "blend": 0.3, "cull": 0.9}  # of the epochs; alpha arrives at 0.7
RAMP = 0.4
ALLOCATOR_MIB = 8.0
"""By how much resident memory may differ without a leak: what an allocator keeps is not exact to the
page. The counts of tensors and of cache entries beside it are exact, and may not grow at all (that of
objects may: events and records are kept)."""


def model() -> nn.Module:
    convs = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


@dataclass
class Soak:
    """One run, and what it records."""

    epochs: int
    digits: Digits = field(default_factory=load)
    rows: list[dict[str, Any]] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.steps = len(self.digits.train.labels) // BATCH
        self.batches = self.digits.batches(self.epochs * self.steps, random_seed=0)
        self.host = fxgraft.trace(model(), (self.digits.train.images[:BATCH],))
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-3)
        self.memory_sink = fxgraft.telemetry.Memory()
        self.manager = fxgraft.SeedManager(
            self.host, self.optimizer, check_every=CHECK_EVERY, sinks=(self.memory_sink,)
        )
        self.groups = [len(group["params"]) for group in self.optimizer.param_groups]
        self.keys = list(self.host.state_dict())

    def run(self) -> dict[str, Any]:
        """All epochs; the summary."""
        at = {round(share * self.epochs): action for action, share in SHARES.items()}
        at[round(SHARES["blend"] * self.epochs) + 1] = "warm"  # every forward that will run has run
        for epoch in range(self.epochs):
            getattr(self, f"_{at.get(epoch)}", lambda: None)()
            self._epoch(epoch)
        self.memory["end"] = footprint()
        return self._summary()

    def _germinate(self) -> None:
        self.memory["alone"] = footprint()
        self.manager.germinate(SLOT, BLUEPRINT, name="soak")

    def _warm(self) -> None:
        self.memory["warm"] = footprint()

    def _blend(self) -> None:
        self.manager.blend("soak", steps=max(round(RAMP * self.epochs) * self.steps, 1), schedule="cosine")

    def _cull(self) -> None:
        self.memory["held"] = footprint()
        self.manager.cull("soak")

    def _epoch(self, epoch: int) -> None:
        losses = []
        for _ in range(self.steps):
            batch = next(self.batches)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.host(batch.images), batch.labels)
            loss.backward()
            self.optimizer.step()
            self.manager.step(loss)
            losses.append(loss.item())
            if seed := self.manager.seeds.get("soak"):
                self.alphas.append(round(seed.alpha, 6))
        self.rows.append(self._row(epoch, sum(losses) / len(losses)))

    def _row(self, epoch: int, loss: float) -> dict[str, Any]:
        seed, manager = self.manager.seeds.get("soak"), self.manager
        row = {"epoch": epoch, "stage": seed.stage.name if seed else "DORMANT", "loss": loss}
        row |= {"held_out": self._held_out(), "checks": manager.monitor.checks}
        if seed:
            manager.measure(seed, self._held_out, at=seed.alpha or 1.0)
        values = {metric: found for metric, found in manager.metrics().items() if found}
        row |= {name: v for name, found in values.items() for v in found.values()}
        return {name: round(v, 6) if isinstance(v, float) else v for name, v in row.items()}

    def _held_out(self) -> float:
        self.host.eval()
        with torch.no_grad():
            part = self.digits.held_out
            loss = float(nn.functional.cross_entropy(self.host(part.images), part.labels))
        self.host.train()
        return loss

    def _summary(self) -> dict[str, Any]:
        stages = [e.data["stage"] for e in self.memory_sink.of_kind("seed_stage")]
        monitor, seed_grew = self.manager.monitor, growth(self.memory["warm"], self.memory["held"])
        return {
            "epochs": self.epochs,
            "steps_per_epoch": self.steps,
            "slot": SLOT,
            "blueprint": BLUEPRINT,
            "stages": stages,
            "isolation": {
                "checks": monitor.checks,
                "check_every": CHECK_EVERY,
                "violations": monitor.violations,
            },
            "memory": {**self.memory, "growth_of_the_seeded_run": seed_grew},
            "alpha": self.alphas,
            "metrics": self.rows,
            "verdicts": {
                "alpha_never_fell": all(a <= b for a, b in pairwise(self.alphas)),
                "alpha_stabilised_at_1": self.alphas[-1] == 1.0,
                "all_stages": stages == [s.name for s in _LIFE],
                "zero_violations": monitor.violations == 0 and monitor.checks > 0,
                "no_memory_growth": _is_flat(seed_grew),
                "culled_without_a_trace": list(self.host.state_dict()) == self.keys
                and [len(group["params"]) for group in self.optimizer.param_groups] == self.groups
                and len(self.optimizer.state) <= sum(self.groups),
            },
        }


_LIFE = (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.CULLED)


def _is_flat(grew: dict[str, float]) -> bool:
    exact = ("tensors", "linecache_entries", "fx_loader_entries")
    return grew["rss_mib"] <= ALLOCATOR_MIB and all(grew[name] <= 0 for name in exact)


def soak(epochs: int, number_of_cycles: int) -> dict[str, Any]:
    """The whole summary: the life of one seed, then many germinations and culls."""
    began = time.perf_counter()
    summary = Soak(epochs).run()
    runs = [bench_cycles.run(number_of_cycles, backend) for backend in ("eager", "aot_eager")]
    summary["cycles"] = runs
    summary["verdicts"] |= {
        f"no_growth_in_{run['cycles']}_cycles_{run['backend']}": _is_flat(run["growth"])
        and run["seeds_left"] == run["isolation_violations"] == 0
        for run in runs
    }
    summary["passed"] = all(summary["verdicts"].values())
    summary["minutes"] = round((time.perf_counter() - began) / 60, 1)
    return summary


def dumps(record: dict[str, Any]) -> str:
    """Indented JSON, with each list of numbers on one line."""
    text = json.dumps(record, indent=1, allow_nan=False)
    return re.sub(r"\[[\s\d.,e+-]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--epochs", type=int, default=100, help="at least 10")
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.epochs < 10:
        parser.error("--epochs: at least 10, so that each stage has one")
    torch.set_num_threads(1)
    record = {
        "command": f"python -m benchmarks.soak --epochs {options.epochs} --cycles {options.cycles}",
        "environment": environment.describe(),
        **soak(options.epochs, options.cycles),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(dumps(record), encoding="utf-8")
    print(json.dumps({"verdicts": record["verdicts"], "out": str(options.out)}, indent=1))
    sys.exit(0 if record["passed"] else 1)


if __name__ == "__main__":
    main()
