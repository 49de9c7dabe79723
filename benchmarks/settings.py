"""What the command line decides, given to every benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch._inductor.utils

from benchmarks.modes import MODES, Mode
from benchmarks.timing import Clock, Meter
from benchmarks.workloads import WORKLOADS, Workload


def _ignore(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Settings:
    """How much is measured, and of what.

    Attributes:
        meter: takes the time.
        repeats: of what cannot be repeated on the spot, such as a compilation.
        quick: whether to measure only what shows that the benchmark works.
        workloads: names; empty for all that a benchmark has.
        modes: likewise.
        cold: whether compilations that are measured begin with an empty cache.
        say: is told what is being done.
    """

    meter: Meter = field(default_factory=Clock)
    repeats: int = 5
    quick: bool = False
    workloads: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    cold: bool = True
    say: Callable[[str], None] = _ignore

    def pairs(self, *wanted: tuple[str, str]) -> Iterator[tuple[Workload, Mode]]:
        """Those of the pairs of workload and mode that were asked for; ``"*"`` stands for all workloads."""
        every = itertools.chain.from_iterable(
            ((name, mode) for name in (WORKLOADS if workload == "*" else [workload]))
            for workload, mode in wanted
        )
        for name, mode in dict.fromkeys(every):
            if (not self.workloads or name in self.workloads) and (not self.modes or mode in self.modes):
                self.say(f"{name}, {mode}")
                yield WORKLOADS[name], MODES[mode]

    def empty_cache(self) -> AbstractContextManager[object]:
        """Inside, Inductor finds nothing that it compiled before."""
        return torch._inductor.utils.fresh_cache() if self.cold else nullcontext()
