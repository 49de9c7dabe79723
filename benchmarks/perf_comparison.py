"""What seeds cost: fxgraft against no fxgraft, disabled seeds, and the same network written by hand.

    python -m benchmarks.perf_comparison [--no-inductor] [--repeats 7] [--rounds 10] [--steps 10]
                                         [--networks mlp_12 small_cnn] [--seeds 1 4 12] [--out DIR]

All arms of a network are alive in one process and take turns: a *round* is ``--steps`` training steps of
each, in an order that is shuffled in every round, so that drift and neighbours on the machine hit both
sides of a ratio. A ratio is taken in each round, its median over a repeat's rounds is that repeat's,
and the table gives median and range over the repeats. All arms see the same batches of scikit-learn's
digits from the same weights, and their last losses stand beside their times.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxgraft
from benchmarks import by_hand, environment
from benchmarks.perf_report import NOTE, judge, markdown
from fxgraft.demo.data import load

OUT = Path(__file__).parent / "baselines" / "wp101_germination"
WARM_UP = 6  # steps of each arm before any is timed: compilation, and the isolation check after a change
BATCH = 64
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp_12": {
        "make": by_hand.mlp_12,
        "first": 2,
        "blocks": 12,
        "blueprint": "mlp",
        "config": {"hidden": 48},
    },
    "small_cnn": {
        "make": by_hand.small_cnn,
        "first": 1,
        "blocks": 4,
        "blueprint": "conv_bottleneck",
        "config": {},
    },
}


@dataclass
class Arm:
    """One model with its optimizer. ``after`` runs after each optimizer step, given its number."""

    call: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    after: Callable[[int], None] = lambda step: None
    against: str | None = None
    step: int = 0
    loss: Tensor | None = None
    wall: list[list[float]] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)

    def train(self, batches: list[tuple[Tensor, Tensor]], steps: int) -> None:
        """``steps`` training steps from where it is."""
        for _ in range(steps):
            x, y = batches[self.step % len(batches)]
            self.optimizer.zero_grad()
            self.loss = nn.functional.cross_entropy(self.call(x), y)
            self.loss.backward()
            self.optimizer.step()
            self.after(self.step)
            self.step += 1

    def timed(self, batches: list[tuple[Tensor, Tensor]], steps: int) -> None:
        """The same, its milliseconds for a step noted: on the clock, and of this process alone.

        One step more goes before, untimed: it finds the caches full of another arm's tensors.
        """
        self.train(batches, 1)
        wall, cpu = time.perf_counter(), time.process_time()
        self.train(batches, steps)
        self.wall[-1].append((time.perf_counter() - wall) / steps * 1e3)
        self.cpu[-1].append((time.process_time() - cpu) / steps * 1e3)


class Comparison:
    """The arms of one network, eager or compiled."""

    def __init__(self, network: str, backend: str, seeds: list[int], steps: int):
        self.network, self.backend, self.steps = NETWORKS[network], backend, steps
        self.arms: dict[str, Arm] = {"baseline": self._bare(), "baseline again": self._bare("baseline")}
        self.arms["disabled"] = self._host(0, blending=False, enabled=False)
        for k in seeds:
            for stage in ("training", "blending"):
                by_hand_arm, host_arm = self._pair(k, stage == "blending")
                self.arms[f"{k} {stage}, by hand"] = by_hand_arm
                host_arm.against = f"{k} {stage}, by hand"
                self.arms[f"{k} {stage}"] = host_arm

    def _model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.network["make"]()

    def _bare(self, against: str | None = None) -> Arm:
        return self._plain(self._model(), against=against)

    def _plain(self, model: nn.Module, **rest: Any) -> Arm:
        call = by_hand.compiled(model) if self.backend == "inductor" else model
        return Arm(call, torch.optim.AdamW(model.parameters(), 1e-3), **rest)

    def _host(self, k: int, blending: bool, enabled: bool = True) -> Arm:
        host = fxgraft.trace(self._model(), (torch.zeros(BATCH, 1, 8, 8),))
        if self.backend == "inductor":
            host.compile()
        optimizer = torch.optim.AdamW(host.parameters(), 1e-3)
        manager = fxgraft.SeedManager(host, optimizer, enabled=enabled)
        for i in range(k if enabled else 1):  # one request where none is granted
            where = self._slot(i)
            manager.germinate(where, self.network["blueprint"], name=f"s{i:02d}", **self.network["config"])
            if blending:
                manager.blend(f"s{i:02d}", steps=self.steps, schedule="linear")
        arm = Arm(host, optimizer, lambda step: manager.step(), "baseline")
        self._latest = manager
        return arm

    def _slot(self, i: int) -> str:
        return f"{self.network['first'] + i % self.network['blocks']}.relu"

    def _pair(self, k: int, blending: bool) -> tuple[Arm, Arm]:
        """The same network twice, down to the weights of its seeds: by hand, and grown."""
        grown = self._host(k, blending)
        model, seeds = self._model(), []
        for i in range(k):
            module = copy.deepcopy(self._latest.seeds[f"s{i:02d}"].module)
            seeds.append(by_hand.graft(model, i % self.network["blocks"], module, blending))
        arm = self._plain(model)
        if blending:
            arm.after = partial(_set_alpha, seeds, self.steps)
        return arm, grown

    def run(self, repeats: int, rounds: int, steps: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
        """Warm up, time in turns, and tell."""
        batches = _batches()
        for name, arm in self.arms.items():
            say(f"warming up: {name}")
            arm.train(batches, WARM_UP)
        order, shuffle = list(self.arms.values()), random.Random(0).shuffle
        for repeat in range(repeats):
            say(f"repeat {repeat + 1} of {repeats}")
            for arm in order:
                arm.wall.append([])
                arm.cpu.append([])
            for _ in range(rounds):
                shuffle(order)
                for arm in order:
                    arm.timed(batches, steps)
        return [self._row(name, arm) for name, arm in self.arms.items()]

    def _row(self, name: str, arm: Arm) -> dict[str, Any]:
        assert arm.loss is not None
        row: dict[str, Any] = {"arm": name, "median_step_ms": _median(map(_median, arm.wall))}
        row |= {"loss": arm.loss.item(), "steps": arm.step}
        row["ratio_to_baseline"] = _ratio(arm, self.arms["baseline"])["wall"]
        if arm.against is not None:
            other = self.arms[arm.against]
            assert other.loss is not None
            row |= {"against": arm.against, "ratio": _ratio(arm, other)}
            row["loss_difference"] = arm.loss.item() - other.loss.item()
        return row


def _set_alpha(seeds: list[nn.Module], steps: int, step: int) -> None:
    for seed in seeds:
        seed.alpha.fill_((step + 1) / steps)  # type: ignore[operator, union-attr]


def _batches() -> list[tuple[Tensor, Tensor]]:
    return [(part.images, part.labels) for part in load().batches(100, random_seed=0)]


def _median(values: Any) -> float:
    return statistics.median(values)


def _ratio(arm: Arm, other: Arm) -> dict[str, dict[str, float]]:
    """Median and range, over the repeats, of the median ratio of a repeat's rounds."""
    found = {}
    for clock in ("wall", "cpu"):
        repeats = zip(getattr(arm, clock), getattr(other, clock), strict=True)
        each = [_median([a / b for a, b in zip(*rounds, strict=True)]) for rounds in repeats]
        found[clock] = {"median": _median(each), "low": min(each), "high": max(each)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.perf_comparison", description=__doc__)
    parser.add_argument("--no-inductor", action="store_true", help="eager only")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 4, 12])
    for name, default in (("repeats", 7), ("rounds", 10), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine, tables = environment.describe(), []
    total = WARM_UP + options.repeats * options.rounds * (options.steps + 1) + 1  # alpha does not arrive
    for network in options.networks:
        for backend in ("eager",) if options.no_inductor else ("eager", "inductor"):
            comparison = Comparison(network, backend, options.seeds, total)
            say = partial(print, f"{network}, {backend}:", flush=True)
            rows = comparison.run(options.repeats, options.rounds, options.steps, say)
            judge(rows, backend)
            tables.append({"network": network, "backend": backend, "rows": rows})
    command = f"python -m benchmarks.perf_comparison {'--no-inductor ' if options.no_inductor else ''}"
    command += f"--repeats {options.repeats} --rounds {options.rounds} --steps {options.steps}"
    record = {"command": command, "environment": machine, "note": NOTE, "tables": tables}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "perf_comparison.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.out / "perf_comparison.md").write_text(markdown(record), encoding="utf-8")
    print(markdown(record))


if __name__ == "__main__":
    main()
