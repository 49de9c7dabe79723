"""Training on while a germination is prepared in the background, every step timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import fxgraft
from benchmarks.workloads import Trainer
from fxgraft.seeds.stage import Stage

TOO_LONG = 600.0
"""Seconds after which a germination is not waited for any more."""


@dataclass(frozen=True)
class Preparation:
    """Seconds.

    Attributes:
        steps: from the germination on, until the seeds are live: the call is in the first, the swap in
            the last.
        first: the first step on the new structure, which compares what comes out with eager mode.
        second: the one after it, which compares gradients.
        took: from the call until the seeds were live.
    """

    steps: tuple[float, ...]
    first: float
    second: float
    took: float

    @property
    def longest(self) -> float:
        """The longest that training stood still."""
        return max(*self.steps, self.first, self.second)


def prepare(trainer: Trainer, germinate: Callable[[], Sequence[fxgraft.Seed]]) -> Preparation:
    """Germinate with ``wait=False``, and train until the seeds are live, and one step more."""
    began = time.perf_counter()
    seeds = germinate()
    trainer.step()
    steps = [time.perf_counter() - began]
    while any(seed.stage is Stage.GERMINATED for seed in seeds):
        steps.append(seconds(trainer.step))
        if time.perf_counter() - began > TOO_LONG:
            raise RuntimeError(f"not live after {TOO_LONG:g} s: {seeds}")
    took = time.perf_counter() - began
    if lost := [seed for seed in seeds if not seed.is_live]:
        raise RuntimeError(f"did not go live: {lost}")
    return Preparation(tuple(steps), seconds(trainer.step), seconds(trainer.step), took)


def train_until_idle(trainer: Trainer, manager: fxgraft.SeedManager) -> None:
    """Until the helper has nothing left to do: it would take time from what is measured next."""
    while manager._background.is_compiling:
        trainer.step()


def seconds(do: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began
