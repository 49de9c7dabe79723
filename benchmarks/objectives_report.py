"""The tables and the plot of the experiment on objectives, from its rows."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib import pyplot

from benchmarks import environment
from benchmarks.objectives_plan import (
    BATCH,
    BATCHED,
    BLENDED_AFTER,
    BOUNDED,
    INTRODUCTION,
    LONGEST,
    MARKER,
    RADII,
    STRESS,
)

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
