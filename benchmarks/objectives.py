"""Which objective an isolated seed should have, and how far it may be trusted: scikit-learn's digits.

    python -m benchmarks.objectives [--quick] [--out DIR]

A small host is trained, a seed germinates and learns in isolation while the host trains on, then it
is blended in. All objectives of one random seed share the host's trajectory to the bit (which is
checked), so they are compared in pairs. ``--quick`` writes only where ``--out`` says.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fxgraft
from benchmarks import environment
from benchmarks.objectives_plan import (
    AFTER,
    BATCH,
    BATCHED,
    BLEND,
    BLENDED_AFTER,
    BOUNDED,
    LONGEST,
    PROBE,
    RADII,
    STRESS,
    WARM_UP,
)
from benchmarks.objectives_report import Report, write
from fxgraft.host import engine

OPTIMIZERS: dict[str, Any] = {
    "AdamW .01": partial(torch.optim.AdamW, lr=0.01),
    "SGD .05, momentum .9": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "SGD .1": partial(torch.optim.SGD, lr=0.1),
    STRESS: partial(torch.optim.SGD, lr=0.5),
}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))


def cnn() -> nn.Module:
    convs = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))


HOSTS: dict[str, dict[str, Any]] = {  # fossilize: made permanent at alpha 1, else held there
    "MLP": {"make": mlp, "slot": "2", "blueprint": "mlp", "config": {"hidden": 32}, "fossilize": True},
    "CNN": {"make": cnn, "slot": "3", "blueprint": "conv_bottleneck", "config": {}, "fossilize": False},
}


@dataclass(frozen=True)
class Cell:
    """One run, measured after each of ``horizons`` steps of isolation; ``objective`` None: no seed."""

    host: str
    optimizer: str
    seed: int
    batch: int
    objective: str | None
    radius: float | None
    horizons: tuple[int, ...]


class Run:
    """A host with its optimizer, manager, order of batches and seed, at the moment of germination."""

    def __init__(self, cell: Cell, warm_up: int = WARM_UP):
        self.cell, self.kind, self.step = cell, HOSTS[cell.host], 0
        torch.manual_seed(cell.seed)
        x, total = data()[0], WARM_UP + LONGEST + AFTER
        generator = torch.Generator().manual_seed(cell.seed)
        self.order = torch.randint(len(x), (total, cell.batch), generator=generator)
        self.host = fxgraft.trace(self.kind["make"](), (x[: cell.batch],))
        self.optimizer = OPTIMIZERS[cell.optimizer](self.host.parameters())
        self.manager = fxgraft.SeedManager(self.host, self.optimizer)
        self.train(warm_up)
        if cell.objective is not None:
            self._germinate(cell.objective, cell.radius)

    def _germinate(self, objective: str, radius: float | None) -> None:
        slot, blueprint, config = (self.kind[key] for key in ("slot", "blueprint", "config"))
        seed = self.manager.germinate(slot, blueprint, name="a", objective=objective, **config)
        if radius is not None:  # germinate takes no radius: place the seed anew, with it
            seed.spec = dataclasses.replace(seed.spec, radius=radius)
            (old,) = self.host.structure.placements
            placed = self.host.structure.with_placement(dataclasses.replace(old, spec=seed.spec))
            engine.set_structure(self.host, placed, self.host.phase, self.host.grafts())
        seed.module.register_forward_hook(self._look)

    def _look(self, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.graft = args[0].detach(), out.detach()

    def train(self, steps: int) -> None:
        """Train on the next batches; the seed too, by its objective, where it is isolated."""
        x, y = data()[:2]
        learning = any(seed.stage is fxgraft.Stage.TRAINING for seed in self.manager.seeds.values())
        for at in self.order[self.step : self.step + steps]:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.host(x[at]), y[at]).backward()
            if learning and self.cell.objective == "shadow":
                with self.manager.shadow():
                    nn.functional.cross_entropy(self.host(x[at]), y[at]).backward()
            self.optimizer.step()
            self.manager.step()
        self.step += steps

    def isolate(self, steps: int) -> float:
        """Train in isolation; return the largest ``|d| / |h|`` that was seen in a training batch."""
        largest = 0.0
        for _ in range(steps // PROBE):
            self.train(PROBE)
            largest = max(largest, self.relative_size())
        return largest

    def relative_size(self) -> float:
        """``|d| / |h|`` in the last forward in which the seed ran."""
        h, d = self.graft
        return float(d.norm() / h.norm())

    @torch.no_grad()
    def loss(self) -> float:
        """The held-out loss."""
        self.host.eval()
        loss = nn.functional.cross_entropy(self.host(data()[2]), data()[3])
        self.host.train()
        return float(loss)

    def loss_at(self, alpha: float) -> float:
        with self.manager.at_alpha("a", alpha):
            return self.loss()

    def loss_after_blend(self) -> float:
        """Blend the seed in and train on, in a copy of this run; return the held-out loss."""
        twin = Run(self.cell, warm_up=0)
        ours = self.host.state_dict()
        for key, tensor in twin.host.state_dict().items():
            tensor.copy_(ours[key])
        twin.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        twin.step = self.step
        if self.cell.objective is not None:
            twin.manager.blend("a", steps=BLEND)
        twin.train(BLEND)
        if self.cell.objective is not None and self.kind["fossilize"]:
            twin.manager.fossilize("a")
        twin.train(AFTER - BLEND)
        return twin.loss()


@cache
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits in [0, 1], (N, 1, 8, 8): 1,200 to train on, 597 held out."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32)[order].reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def measure(cell: Cell) -> list[dict[str, Any]]:
    """The rows of one cell, one for each horizon."""
    torch.set_num_threads(1)
    run, rows, done, largest = Run(cell), [], 0, 0.0
    for steps in cell.horizons:
        row: dict[str, Any] = {**dataclasses.asdict(cell), "steps": steps}
        if cell.objective is None:
            run.train(steps - done)
            row["alpha0"] = run.loss()
        else:
            largest = max(largest, run.isolate(steps - done))
            row |= {"peak": largest, "alpha0": run.loss_at(0.0), "alpha1": run.loss_at(1.0)}
            row["size"] = run.relative_size()  # on the held-out digits, by the line above
        if steps in BLENDED_AFTER:
            row["after"] = run.loss_after_blend()
        rows.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
        done = steps
    return rows


def cells(quick: bool) -> list[Cell]:
    """Every run, the longest first."""
    short, long = (BLENDED_AFTER[:2],) * 2 if quick else (BLENDED_AFTER, (*BLENDED_AFTER, LONGEST))
    bounded = list(itertools.product(BOUNDED, RADII[1:2] if quick else RADII))
    found = []
    for host, optimizers, seeds in (("CNN", 2, 3), ("MLP", 3, 4)):
        kinds = [Cell(host, "", 0, BATCH[host], o, None, short) for o in (None, "straight_through", "shadow")]
        kinds += [Cell(host, "", 0, BATCH[host], *kind, long) for kind in bounded]
        places = itertools.product(
            list(OPTIMIZERS)[: 2 if quick else optimizers], range(2 if quick else seeds)
        )
        for (optimizer, seed), kind in itertools.product(places, kinds):
            found.append(dataclasses.replace(kind, optimizer=optimizer, seed=seed))
    if not quick:
        found += [
            Cell("MLP", STRESS, seed, BATCH["MLP"], *kind, (LONGEST,))
            for seed, kind in itertools.product(range(3), bounded)
        ]
        found += [
            Cell(host, "AdamW .01", seed, batch, *kind, (300, 1000))
            for host, seed, batch, kind in itertools.product(HOSTS, range(3), (16, 256), BATCHED)
        ]
    return sorted(found, key=lambda cell: -max(cell.horizons))


def run_all(wanted: list[Cell], processes: int) -> list[dict[str, Any]]:
    """The rows of all cells, in the order of the cells."""
    found: dict[Cell, list[dict[str, Any]]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool, Progress() as progress:
        bar = progress.add_task("cells", total=len(wanted))
        running = {pool.submit(measure, cell): cell for cell in wanted}
        for done in as_completed(running):
            found[running[done]] = done.result()
            progress.advance(bar)
    return [row for cell in wanted for row in found[cell]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds, rho 0.1, 300 steps at most")
    parser.add_argument("--report", action="store_true", help="only write the report anew, from the JSON")
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results unless --quick")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    out = options.out or (None if options.quick else Path(__file__).parent / "results")
    if options.report and out is not None:
        return write(json.loads((out / "objectives.json").read_text()), out)
    machine = environment.describe() | {"torch_threads": 1}  # now: a commit may arrive during the run
    began = time.perf_counter()
    rows = run_all(cells(options.quick), options.processes)
    minutes = round((time.perf_counter() - began) / 60, 1)
    record = {"environment": machine, "minutes": minutes, "rows": rows}
    if out is not None:
        return write(record, out)
    return print(Report(record).markdown())


if __name__ == "__main__":
    main()
