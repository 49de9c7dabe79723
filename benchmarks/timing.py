"""How time is taken, and by what else it can be replaced (`Profiler`).

Both sides of a ratio live in one process and take turns: a *round* is some steps of each, in an order
that is shuffled in every round, so that drift and neighbours on the machine hit both. A ratio is taken
in each round; its median over the rounds of a repeat is that repeat's; a row has median and range over
the repeats.
"""

from __future__ import annotations

import cProfile
import gc
import io
import pstats
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.rows import Spread
from fxgraft.util.interleaved_timing import Step, repeat, time_interleaved

Samples = list[list[float]]
"""Seconds for one step: of each repeat, of each round."""


class Meter(Protocol):
    """Takes the time of steps."""

    def interleaved(self, sides: Mapping[str, Step]) -> dict[str, Samples]:
        """Time all sides, interleaved."""
        ...

    def once(self, name: str, do: Step) -> float:
        """Seconds for something that cannot be repeated on the spot."""
        ...


@dataclass(frozen=True)
class Clock:
    """The wall clock.

    Attributes:
        repeats: how many ratios there are in the end.
        rounds: in each repeat.
        steps: of each side in a round.
        warm_up: steps of each side before all.
    """

    repeats: int = 5
    rounds: int = 8
    steps: int = 5
    warm_up: int = 4

    def interleaved(self, sides: Mapping[str, Step]) -> dict[str, Samples]:
        for step in sides.values():
            repeat(step, self.warm_up)
        settle()
        shuffle = random.Random(0).shuffle
        samples: dict[str, Samples] = {name: [] for name in sides}
        for _ in range(self.repeats):
            for name, rounds in time_interleaved(sides, self.rounds, self.steps, shuffle).items():
                samples[name].append(rounds)
        return samples

    def once(self, name: str, do: Step) -> float:
        began = time.perf_counter()
        do()
        return time.perf_counter() - began


@dataclass(frozen=True)
class Profiler:
    """Says where the time of each side goes, for the reason that a missed budget needs. Not a clock.

    By the processor time of the thread, so that other work on the machine does not count.

    Attributes:
        say: is given the tables.
        steps: that a side is watched for.
        top: functions in a table.
    """

    say: Callable[[str], None]
    steps: int = 50
    top: int = 25

    def interleaved(self, sides: Mapping[str, Step]) -> dict[str, Samples]:
        found = {}
        for name, step in sides.items():
            repeat(step, Clock.warm_up)
            settle()
            found[name] = [[self.once(name, lambda step=step: repeat(step, self.steps)) / self.steps]]
        return found

    def once(self, name: str, do: Step) -> float:
        profile = cProfile.Profile(time.thread_time)
        began = time.perf_counter()
        profile.runcall(do)
        spent = time.perf_counter() - began
        table = io.StringIO()
        stats = pstats.Stats(profile, stream=table).sort_stats("tottime")
        stats.print_stats(self.top)
        parts = ", ".join(f"{part} {1e3 * own / self.steps:.3f}" for part, own in _by_part(stats).items())
        self.say(f"== {name}\nms of a step: {parts}\n{table.getvalue()}")
        return spent


def _by_part(stats: pstats.Stats) -> dict[str, float]:
    """Seconds in operations (all that is written in C), in fxgraft's own Python, and in other Python."""
    found = {"operations": 0.0, "fxgraft's Python": 0.0, "other Python": 0.0}
    functions: Mapping[tuple[str, int, str], tuple[Any, ...]] = stats.stats  # type: ignore[attr-defined]
    for (file, _, _), (_, _, own, *_) in functions.items():
        is_ours = "fxgraft" in file and "site-packages" not in file and "benchmarks" not in file
        found["operations" if file == "~" else "fxgraft's Python" if is_ours else "other Python"] += own
    return found


def processor_ms(sides: Mapping[str, Step], turns: int, warm_up: int) -> dict[str, float]:
    """Milliseconds of processor time of a step of each side: the median over turns, after some to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm_up + turns):
        for name, step in sides.items():
            began = time.process_time()
            step()
            if turn >= warm_up:
                spent[name].append((time.process_time() - began) * 1e3)
    return {name: statistics.median(found) for name, found in spent.items()}


def settle() -> None:
    """Collect garbage now, and let later collections pass over what is there: they would hit anyone."""
    gc.collect()
    gc.freeze()


def ratio(ours: Samples, theirs: Samples) -> Spread:
    """Of each repeat the median over its rounds; of those median and range."""
    repeats = zip(ours, theirs, strict=True)
    return Spread.of(statistics.median([a / b for a, b in zip(*rounds, strict=True)]) for rounds in repeats)


def median_ms(samples: Samples) -> float:
    """Of all rounds, in milliseconds."""
    return statistics.median([seconds for rounds in samples for seconds in rounds]) * 1e3
