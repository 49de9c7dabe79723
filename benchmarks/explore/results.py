"""From parts to results: how well each score orders the candidates, and what it costs."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from benchmarks.explore.guide import PAGE, into_page
from benchmarks.explore.networks import WORKLOADS
from benchmarks.explore.page import page
from benchmarks.explore.plan import CHOSEN_ON, EXPLORED, RADII, RANDOM_SEEDS, SPLITS
from fxgraft.explore.scoring import DEFAULT

OUT = Path(__file__).parents[1] / "results"
BORN_SCORES = ("parameters", "adam times parameters", "gradient", "mean gradient", "adam", "fisher")
NAMED = {
    "expected_times_parameters": "adam times parameters",
    "expected_and_parameters": "parameters and adam",
    "expected": "adam",
}
"""Scores of the library, and what the plan calls them."""
DEFAULT_NAMED = NAMED.get(DEFAULT, DEFAULT)

Parts = dict[str, dict[str, Any]]
Scores = dict[str, Callable[[int], list[float] | None]]
"""Name -> (random seed -> a score for each candidate, or None where the part is missing)."""


def rho(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return float(spearmanr(a, b).statistic)


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each, the smallest 0; equal ones in their order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found = [0.0] * len(values)
    for rank, i in enumerate(order):
        found[i] = float(rank)
    return found


class Workload:
    """The parts of one workload, as far as they are there.

    Args:
        name: of one of `WORKLOADS`.
        parts: by their keys.
        stored: earlier results of it, whose truth counts where the parts have none.
    """

    def __init__(self, name: str, parts: Parts, stored: dict[str, Any] | None = None):
        self.name, self._parts = name, parts
        self._stored: dict[str, Any] | None = None
        self.fresh: dict[str, Any] = {}
        self.candidates = WORKLOADS[name].candidates
        number = range(len(self.candidates))
        self.seeds = [
            seed
            for seed in range(RANDOM_SEEDS[name])
            if all(f"{name} {seed} truth {i}" in parts for i in ("none", *number))
        ]
        self.gains = {s: [self._gain(s, i, "end") for i in number] for s in self.seeds}
        if not self.seeds and stored is not None:
            self._stored = stored
            self.seeds = list(range(stored["random_seeds"]))
            self.gains = {s: [one["gains"][s] for one in stored["candidates"]] for s in self.seeds}

    def part(self, seed: int, what: str) -> dict[str, Any] | None:
        return self._parts.get(f"{self.name} {seed} {what}")

    def _gain(self, seed: int, candidate: int, when: str) -> float:
        none, one = self.part(seed, "truth none"), self.part(seed, f"truth {candidate}")
        assert none is not None
        assert one is not None
        return float(none[when] - one[when])

    def truth(self, seeds: Iterable[int] | None = None) -> list[float]:
        """The mean gain of each candidate over random seeds."""
        chosen = self.seeds if seeds is None else list(seeds)
        return [statistics.fmean(gains) for gains in zip(*(self.gains[s] for s in chosen), strict=True)]

    def repeats(self) -> float | None:
        """How far the truth of one half of the random seeds agrees with that of the other."""
        if len(self.seeds) < 2:
            return None
        draw, found = random.Random(0), []
        for _ in range(SPLITS):
            order = draw.sample(self.seeds, len(self.seeds))
            half = len(order) // 2
            found.append(rho(self.truth(order[:half]), self.truth(order[half:])))
        return statistics.median(found)

    def scores(self) -> Scores:
        def of(what: str, key: str) -> Callable[[int], list[float] | None]:
            return lambda seed: (self.part(seed, what) or {}).get(key)

        def mixed(*names: str) -> Callable[[int], list[float] | None]:
            def mean(seed: int) -> list[float] | None:
                both = [found[name](seed) for name in names]
                if any(one is None for one in both):
                    return None
                return [statistics.fmean(r) for r in zip(*(ranks(one) for one in both if one), strict=True)]

            return mean

        def shadow(seed: int) -> list[float] | None:
            each = [self.part(seed, f"shadow {i}") for i in range(len(self.candidates))]
            return None if None in each else [one["contribution"] for one in each if one is not None]

        found: Scores = {
            f"contribution, radius {radius:g}, {steps} steps": of(f"explored {radius}", f"after {steps}")
            for radius, steps in itertools.product(RADII, EXPLORED)
        }
        found |= {name: of("born", name) for name in BORN_SCORES}
        found["contribution and adam"] = mixed(f"contribution, radius {0.1:g}, 100 steps", "adam")
        found["parameters and adam"] = mixed("parameters", "adam")
        found["shadow"] = shadow
        if self._stored is None:
            found["inserted"] = lambda seed: [
                self._gain(seed, i, "inserted") for i in range(len(self.candidates))
            ]
        return found

    def _environment(self) -> dict[str, Any] | None:
        """Where the truth was measured; None where that is what all results say."""
        if self._stored is not None:
            found: dict[str, Any] | None = self._stored.get("environment")
            return found
        return (self.part(self.seeds[0], "truth none") or {}).get("environment")

    def one_run(self) -> dict[str, float]:
        """What the gains of one random seed say of the mean of the others, in the mean over the seeds."""
        others = {s: self.truth(t for t in self.seeds if t != s) for s in self.seeds}
        regrets = [self.regret(self.gains[s], others[s]) for s in self.seeds]
        return {
            "spearman": statistics.fmean(rho(self.gains[s], others[s]) for s in self.seeds),
            "regret": statistics.fmean(r for r in regrets if r is not None),
        }

    def regret(self, scores: Sequence[float], truth: Sequence[float] | None = None) -> float | None:
        """Of the candidate that ``scores`` put first; 0 is the best, 1 the median one."""
        truth = self.truth() if truth is None else truth
        span = max(truth) - statistics.median(truth)
        return (max(truth) - truth[scores.index(max(scores))]) / span if span else None

    def separate(self) -> float:
        """CPU seconds of all separate runs of one random seed."""
        if self._stored is not None:
            return float(self._stored["separate_cpu_seconds"])
        each = [
            sum(self.part(s, f"truth {i}")["seconds"] for i in range(len(self.candidates)))  # type: ignore[index]
            for s in self.seeds
        ]
        return statistics.fmean(each)

    def cost(self, name: str) -> float | None:
        """Of an exploration with that score, against the separate runs."""
        spent = []
        for seed in self.seeds:
            if name.startswith("contribution, "):
                _, radius, steps = name.split(", ")
                part = self.part(seed, f"explored {float(radius.split()[1])}")
                spent += [part["seconds"][steps.split()[0]]] if part else []
            elif name in (*BORN_SCORES, "parameters and adam") and name != "parameters":
                part = self.part(seed, "born")
                spent += [part["seconds"]] if part else []
        return statistics.fmean(spent) / self.separate() if spent else None

    def results(self) -> dict[str, Any]:
        truth = self.truth()
        rows = []
        for name, of in self.scores().items():
            there = [(seed, scores) for seed in self.seeds if (scores := of(seed)) is not None]
            if there:
                regrets = [self.regret(scores) for _, scores in there]
                own = [rho(scores, self.gains[seed]) for seed, scores in there]
                fresh = [(s, scores) for s, scores in there if s >= CHOSEN_ON.get(self.name, 0)]
                if fresh and name == DEFAULT_NAMED:
                    self.fresh = {
                        "random seeds": len(fresh),
                        "spearman": statistics.fmean(rho(scores, truth) for _, scores in fresh),
                        "regret": statistics.fmean(self.regret(scores) or 0.0 for _, scores in fresh),
                    }
                rows.append(
                    {
                        "score": name,
                        "spearman": statistics.fmean(rho(scores, truth) for _, scores in there),
                        "spearman with the run itself": statistics.fmean(own),
                        "regret": statistics.fmean(r for r in regrets if r is not None),
                        "cost": self.cost(name),
                        "random seeds": len(there),
                    }
                )
        known = {row["score"] for row in rows}
        rows += [row for row in (self._stored or {}).get("scores", ()) if row["score"] not in known]
        span = max(truth) - statistics.median(truth)
        fresh = self.fresh or (self._stored or {}).get("fresh")
        environment = self._environment()
        return {
            **({"environment": environment} if environment else {}),
            **({"fresh": fresh} if fresh else {}),
            "random_seeds": len(self.seeds),
            "repeats": self.repeats(),
            "one run": self.one_run(),
            "candidates": [
                {
                    "slot": c.slot, "source": c.source, "blueprint": c.blueprint, "config": c.config,
                    "gain": gain, "gains": [self.gains[s][i] for s in self.seeds],
                }
                for i, (c, gain) in enumerate(zip(self.candidates, truth, strict=True))
            ],
            "regret of a random choice": (max(truth) - statistics.fmean(truth)) / span if span else None,
            "separate_cpu_seconds": self.separate(),
            "scores": sorted(rows, key=lambda row: -row["spearman"]),
        }  # fmt: skip


def write(*files: Path) -> None:
    """Write ``explore.json``, ``explore.md`` and the table of the guide from files of parts."""
    there = [file for file in files if file.exists()]
    lines = [json.loads(line) for file in there for line in file.read_text().splitlines()]
    parts = {line["key"]: line for line in lines}
    stored = json.loads((OUT / "explore.json").read_text()) if (OUT / "explore.json").exists() else {}
    found: dict[str, Any] = {}
    for name in WORKLOADS:
        workload = Workload(name, parts, stored.get("workloads", {}).get(name))
        if len(workload.seeds) >= 2:
            found[name] = workload.results()
    named = DEFAULT_NAMED
    default = {}
    for name, results in found.items():
        row = next((row for row in results["scores"] if row["score"] == named), None)
        if row is not None:
            default[name] = {key: row[key] for key in ("spearman", "regret", "cost")}
            default[name]["repeats"] = results["repeats"]
    data = {
        "command": "python -m benchmarks.explore",
        "environment": stored.get("environment") or lines[-1]["environment"],
        "default": named,
        "steps": [
            {key: line[key] for key in ("d_model", "ms", "ratio")}
            for name, line in parts.items()
            if name.startswith("steps ")
        ]
        or stored.get("steps", []),
        "workloads": {name: {**default.get(name, {}), **results} for name, results in found.items()},
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "explore.json").write_text(json.dumps(data, indent=1) + "\n")
    (OUT / "explore.md").write_text(page(data))
    PAGE.write_text(into_page(PAGE.read_text(encoding="utf-8"), data), encoding="utf-8")
