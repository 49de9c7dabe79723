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
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from rich.progress import Progress
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fxgraft
from benchmarks import environment

RADII, BOUNDED = (0.03, 0.1, 0.3), ("trust", "trust_step")
WARM_UP, BLEND, AFTER, LONGEST = 300, 100, 300, 3000  # steps; AFTER includes BLEND
BLENDED_AFTER = (50, 300, 1000)
BATCHED = (("trust", 0.03), ("trust", 0.1), ("trust_step", 0.1))  # at other batch sizes as well
PROBE = 25  # steps between two looks at the branch's size
BATCH = {"CNN": 32, "MLP": 64}
INTRODUCTION = f"""\
{WARM_UP} steps of training, then a seed (MLP 64-6-10: `mlp` of 32 hidden units behind the ReLU, fossilized;
CNN: `conv_bottleneck` behind the second ReLU, held at alpha 1) is isolated for so many steps and measured at
alpha 1; then blended in {BLEND} steps, {AFTER} in all, and measured again. Percentages are changes of the
held-out loss, paired by random seed: mean ± standard deviation (how often lower). The host alone is alpha 0,
or the host trained for as long without a seed. 4 random seeds for the MLP, 3 for the CNN."""
MARKER = "## Decision\n"  # from here on the Markdown is written by hand, and kept
STRESS = "SGD .5"  # for invariant 14 only, on the MLP
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
            self.host.adopt(placed, self.host.phase, self.host.grafts())
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


# The report

Kind = tuple[str | None, float | None]  # objective, radius
NO_SEED: Kind = (None, None)


class Report:
    """The tables and the plot of a record."""

    def __init__(self, record: dict[str, Any]):
        self.record, self.every = record, [_with_infinities(row) for row in record["rows"]]
        self.rows = [row for row in self.every if row["batch"] == BATCH[row["host"]]]
        self.known = {self._key(row): row for row in self.rows}
        kinds = {(row["objective"], row["radius"]) for row in self.rows} - {NO_SEED}
        self.kinds: list[Kind] = sorted(kinds, key=lambda kind: (kind[0], kind[1] or 0))
        self.places = sorted({(r["host"], r["optimizer"]) for r in self.rows if r["optimizer"] != STRESS})
        self.steps = [n for n in BLENDED_AFTER if any(row["steps"] == n for row in self.rows)]
        self.measured = list(itertools.product(("alpha1", "after"), self.steps))

    @staticmethod
    def _key(row: dict[str, Any], **changed: Any) -> tuple[Any, ...]:
        names = ("host", "optimizer", "seed", "objective", "radius", "steps")
        return tuple((row | changed)[name] for name in names)

    def of(self, kind: Kind, steps: int, place: tuple[str, str] | None = None) -> list[dict[str, Any]]:
        found = [r for r in self.rows if (r["objective"], r["radius"], r["steps"]) == (*kind, steps)]
        return [r for r in found if place in (None, (r["host"], r["optimizer"]))]

    def value(self, row: dict[str, Any], kind: Kind, measure: str) -> float:
        """The measurement beside ``row`` with another kind of seed, or with none."""
        other = self.known[self._key(row, objective=kind[0], radius=kind[1])]
        value: float = other["alpha0" if kind == NO_SEED and measure == "alpha1" else measure]
        return value

    def isolation_held(self) -> bool:
        """Whether the host was the same to the bit in all runs of one random seed."""
        rows = [row for row in self.rows if row["steps"] in self.steps]
        return all(row["alpha0"] == self.value(row, NO_SEED, "alpha0") for row in rows)

    def changes(self, kind: Kind, other: Kind, place: tuple[str, str] | None = None) -> list[str]:
        return [
            change([(self.value(r, kind, m), self.value(r, other, m)) for r in self.of(kind, n, place)])
            for m, n in self.measured
        ]

    def losses(self, kind: Kind, place: tuple[str, str]) -> list[str]:
        return [spread([self.value(r, kind, m) for r in self.of(kind, n, place)]) for m, n in self.measured]

    def bound(self, kind: Kind, place: tuple[str, str]) -> str:
        """The worst of invariant 14 over the random seeds."""
        rows, radius = self.of(kind, LONGEST, place), kind[1] or math.nan
        size, peak = (max(row[name] for row in rows) / radius for name in ("size", "peak"))
        loss = max(row["alpha1"] / row["alpha0"] for row in rows)
        return f"{size:.2f} ({peak:.2f}), {loss:.2f}{'' if size <= 2 and loss <= 1.5 else ' **broken**'}"

    def batches(self) -> list[list[str]]:
        """Some of the objectives at several batch sizes."""
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for r in self.every:
            kind = (r["objective"], r["radius"])
            if (
                kind in BATCHED
                and r["optimizer"] == "AdamW .01"
                and r["steps"] in (300, 1000)
                and r["seed"] < 3
            ):
                groups.setdefault((r["host"], called(kind), r["steps"], r["batch"]), []).append(r)
        found = []
        for group, same in sorted(groups.items()):
            sizes = [spread([r[name] / r["radius"] for r in same], ".2f", ".2f") for name in ("size", "peak")]
            found.append([*map(str, group), *sizes, change([(r["alpha1"], r["alpha0"]) for r in same])])
        return found

    def markdown(self) -> str:
        columns = [f"{'alpha 1' if m == 'alpha1' else 'blended'}, {n}" for m, n in self.measured]
        bounded = [kind for kind in self.kinds if kind[0] in BOUNDED]
        radii = [rho for name, rho in bounded if name == "trust"]
        where: list[tuple[str, str] | None] = [None, *self.places]
        rivals = [
            [str(rho), " ".join(place or ("all",)), *self.changes(("trust", rho), ("trust_step", rho), place)]
            for rho, place in itertools.product(radii, where)
        ]
        long_places = sorted({(r["host"], r["optimizer"]) for r in self.rows if r["steps"] == LONGEST})
        bounds = [
            [called(k), *(self.bound(k, p) for p in long_places)] for k in bounded if self.of(k, LONGEST)
        ]
        every = itertools.product(self.places, (NO_SEED, *self.kinds))
        parts = [
            "# The objective of an isolated seed, on digits",
            f"{environment.as_markdown(self.record['environment'])}. {self.record['minutes']} minutes.",
            INTRODUCTION,
            "The host was the same to the bit under every objective: "
            f"{'yes' if self.isolation_held() else '**NO**'}.",
            "## Against the host alone",
            table(["objective", *columns], [[called(k), *self.changes(k, NO_SEED)] for k in self.kinds]),
            "## Form ii (`trust`) against form i (`trust_step`)",
            table(["rho", "where", *columns], rivals),
            f"## Invariant 14: {LONGEST:,} isolated steps",
            "The worst random seed: held-out |d| / (rho |h|) at the end (in parentheses the largest in any\n"
            "training batch looked at), loss at alpha 1 / loss at alpha 0. Allowed: 2 and 1.5.",
            table(["objective", *map(" ".join, long_places)], bounds),
            "## Batch size",
            "AdamW, 3 random seeds. The norms of the objective are taken over the whole batch.",
            table(
                ["host", "objective", "steps", "batch", "|d| / (rho |h|)", "largest", "alpha 1"],
                self.batches(),
            ),
            "## Losses",
            "Held-out loss, mean ± standard deviation over the random seeds.",
            table(
                ["host", "objective", *columns],
                [[" ".join(p), called(k), *self.losses(k, p)] for p, k in every],
            ),
        ]
        return "\n\n".join(parts) + "\n\n"

    def ratios(self, kind: Kind, measure: str, place: tuple[str, str]) -> tuple[list[float], list[float]]:
        """Loss with the seed over loss without, by steps of isolation: means and standard deviations."""
        means, deviations = [], []
        for n in self.steps:
            same = [
                self.value(r, kind, measure) / self.value(r, NO_SEED, measure)
                for r in self.of(kind, n, place)
            ]
            means.append(statistics.fmean(same))
            deviations.append(statistics.stdev(same) if max(same) < 10 else 0)  # off the frame anyway
        return means, deviations

    def plot(self, path: Path) -> None:
        figure, axes = pyplot.subplots(2, len(self.places), figsize=(3.6 * len(self.places), 7), sharex=True)
        rows = (("alpha1", "loss at alpha 1 / at alpha 0"), ("after", "loss blended in / without a seed"))
        for (row, (measure, title)), (column, place) in itertools.product(
            enumerate(rows), enumerate(self.places)
        ):
            axis = axes[row][column]
            for offset, kind in enumerate(self.kinds):
                means, deviations = self.ratios(kind, measure, place)
                x = [n * 1.03 ** (offset - len(self.kinds) / 2) for n in self.steps]
                axis.errorbar(x, means, deviations, marker=".", lw=1, label=called(kind), **look(kind))
            axis.axhline(1, color="black", lw=0.8)
            axis.set(
                xscale="log", ylim=(0.4, 1.6), title=" ".join(place), ylabel=title, xlabel="isolated steps"
            )
            axis.set_xticks(self.steps, [str(n) for n in self.steps])
            axis.minorticks_off()
        handles = axes[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="lower center", ncols=len(self.kinds), fontsize=8)
        figure.tight_layout(rect=(0, 0.05, 1, 1))
        figure.savefig(path, dpi=100)


def _with_infinities(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinities: a measurement that was not finite is null there."""
    return {k: math.inf if v is None and k not in ("objective", "radius") else v for k, v in row.items()}


def look(kind: Kind) -> dict[str, Any]:
    """Forms by hue, radii by depth."""
    name, radius = kind
    if name not in BOUNDED:
        grey = name == "straight_through"
        return {"color": "0.5" if grey else "tab:green", "linestyle": ":" if grey else "--"}
    hue = pyplot.get_cmap("Blues" if name == "trust" else "Oranges")
    return {"color": hue(0.4 + 0.25 * RADII.index(radius or 0.1))}


def called(kind: Kind) -> str:
    name, radius = kind
    return "no seed" if name is None else name if radius is None else f"{name} {radius}"


def change(pairs: list[tuple[float, float]]) -> str:
    """Relative change in percent: mean ± standard deviation, and how often it is for the better."""
    percents = [100 * (ours / theirs - 1) if math.isfinite(theirs) else -100 for ours, theirs in pairs]
    better = sum(percent < 0 for percent in percents)
    return f"{spread(percents, '+.1f', '.1f')} % ({better}/{len(pairs)})"


def spread(values: list[float], mean: str = ".3f", deviation: str = ".3f") -> str:
    if not all(map(math.isfinite, values)):
        return "not finite"
    if abs(statistics.fmean(values)) >= 1000:
        mean = deviation = ".1e"
    return f"{statistics.fmean(values):{mean}} ± {statistics.stdev(values):{deviation}}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def write(record: dict[str, Any], folder: Path) -> None:
    """The JSON, the Markdown (whose decision, written by hand, is kept) and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "objectives.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    markdown = folder / "objectives.md"
    _, marker, decision = markdown.read_text().partition(MARKER) if markdown.exists() else ("", "", "")
    markdown.write_text(Report(record).markdown() + (marker or MARKER) + decision)
    Report(record).plot(folder / "objectives.png")


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
