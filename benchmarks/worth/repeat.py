"""Repeats committed runs and says whether they come to the same: ``python -m benchmarks.worth --repeat``.

A run on the same machine with the same library repeats to the last digit. On another machine, even of
the same name, rounding differs, and after some hundred steps the run is like one of another random seed. So
the error of a difference of two runs is the square root of 2 times the standard deviation between random
seeds, pooled over the arms and ends of the workload that have several. With n ends a single one may differ
by the number of errors that chance exceeds in 5 % of such comparisons (2.0 for one end, 3.5 for a hundred).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from benchmarks.worth.results import Records, run_of

SAMPLE = (
    "gpt-fixed-3-lr0.003-seed3",
    "gpt-grow-lr0.003-seed3",
    "cnn-fixed-1-lr0.016-seed3",
    "cnn-grow-lr0.016-seed3",
    "cnn-grow-lr0.016-seed4",
    "cnn-grow-lr0.016-seed5",
    "thin-fixed-8-lr0.008-seed2",
    "thin-deepen-1-8-lr0.032-seed0",
    "gpt-autogrow-anything-lr0.003-seed3",
    "gpt-autogrow-anything-lr0.003-seed4",
    "gpt-autogrow-anything-lr0.003-seed5",
    "gpt-copies-8-lr0.0021-seed24",
    "brown-copies-2-lr0.003-seed24",
    "brown-grow-early-lr0.003-seed24",
    "cnn-fixed-2-lr0.016-seed25",
    "cnn-grow-early-lr0.016-seed24",
    "thin-copies-4-lr0.064-seed24",
    "gpt-grow-measured-lr0.0021-seed28",
    "cnn-grow-measured-lr0.016-seed29",
    "thin-grow-measured-lr0.064-seed27",
    "long-grow-measured-lr0.012-seed28",
)
"""What ``--repeat`` without names repeats: of each workload a control and growth, of several experiments."""

FILE = "worth_repeat.json"
CHANCE = 0.05
SHIFT = 3.0  # standard errors by which the mean over all runs may differ
FLOPS = 0.01  # by which the cost of an end may differ; growth that decides by itself spends it otherwise


@dataclass(frozen=True)
class End:
    """One end of a run that was repeated."""

    run: str
    share: float
    here: float
    committed: float
    error: float
    flops_ratio: float

    @property
    def errors(self) -> float:
        """The difference in standard errors, with its sign."""
        return (self.here - self.committed) / self.error


@dataclass(frozen=True)
class Verdict:
    """Whether runs come to what the committed ones say."""

    ends: tuple[End, ...]
    allowed: float
    outside: tuple[End, ...]
    shift: float
    dearer: tuple[End, ...]

    @property
    def same(self) -> bool:
        """Whether all is within its error."""
        return not self.outside and abs(self.shift) <= SHIFT and not self.dearer

    def __str__(self) -> str:
        if not self.ends:
            return "None of these runs is among the committed results."
        differences = [abs(end.here - end.committed) for end in self.ends]
        exactly = sum(end.here == end.committed for end in self.ends)
        lines = [
            f"{len(self.ends)} ends repeated, {exactly} to the last digit; test losses differ by"
            f" {statistics.fmean(differences):.4f} on average, {max(differences):.4f} at most."
        ]
        lines += [
            f"{end.run} at {end.share:g}: {end.here:.4f}, committed {end.committed:.4f} ± {end.error:.4f}"
            for end in self.outside
        ]
        lines += [f"{end.run} at {end.share:g}: {end.flops_ratio:.3f} times the FLOPs" for end in self.dearer]
        said = "They repeat" if self.same else "They DO NOT repeat"
        lines.append(
            f"{said} the committed ones: at most {max(abs(end.errors) for end in self.ends):.1f} standard"
            f" errors ({self.allowed:.1f} allowed), their mean {self.shift:+.1f} ({SHIFT:.1f} allowed)."
        )
        return "\n".join(lines)

    def told(self) -> dict[str, Any]:
        """In JSON types."""
        ends = [
            {
                "run": end.run, "share": end.share,
                "here": round(end.here, 5), "committed": round(end.committed, 5),
                "standard_error": round(end.error, 5), "errors": round(end.errors, 2),
                "flops_ratio": round(end.flops_ratio, 5),
            }
            for end in self.ends
        ]  # fmt: skip
        return {
            "repeats": self.same,
            "to_the_last_digit": sum(end.here == end.committed for end in self.ends),
            "allowed_errors": round(self.allowed, 2),
            "errors_of_the_mean": round(self.shift, 2),
            "ends": ends,
        }


def compared(here: Records, committed: Records, all_of_them: Records | None = None) -> Verdict:
    """The runs that are in both. ``all_of_them``: the records that say how large an error is."""
    deviation = deviations(committed if all_of_them is None else all_of_them)
    ends: list[End] = []
    shifts: list[float] = []
    for name in sorted(here.keys() & committed.keys()):
        error = math.sqrt(2) * deviation.get(run_of(committed[name]).workload, math.nan)
        if not error > 0:
            continue
        found = [
            End(
                name, end["share"], end["test"], other["test"], error,
                sum(end["flops"].values()) / sum(other["flops"].values()),
            )
            for end, other in zip(here[name]["ends"], committed[name]["ends"], strict=True)
        ]  # fmt: skip
        ends += found
        shifts.append(statistics.fmean(end.errors for end in found))
    if not ends:
        return Verdict((), 0.0, (), 0.0, ())
    allowed = statistics.NormalDist().inv_cdf(1 - CHANCE / 2 / len(ends))
    return Verdict(
        tuple(ends),
        allowed,
        tuple(end for end in ends if not abs(end.errors) <= allowed),
        statistics.fmean(shifts) * math.sqrt(len(shifts)),
        tuple(end for end in ends if abs(end.flops_ratio - 1) > FLOPS),
    )


def deviations(records: Records) -> dict[str, float]:
    """By workload: the standard deviation of the test loss between random seeds, pooled."""
    losses: dict[tuple[str, str, float, float], list[float]] = defaultdict(list)
    for record in records.values():
        run = run_of(record)
        if not run.tuning:
            for end in record["ends"]:
                losses[run.workload, run.arm, run.rate, end["share"]].append(end["test"])
    squares: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for (workload, *_), found in losses.items():
        if len(found) > 1:
            squares[workload].append((len(found) - 1, statistics.variance(found)))
    return {
        workload: math.sqrt(sum(free * square for free, square in each) / sum(free for free, _ in each))
        for workload, each in squares.items()
    }
