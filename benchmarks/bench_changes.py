"""What changes cost that change no structure, or go back to a known one: alpha, stages, culls.

Compilations are counted, not timed, with a backend that counts and compiles nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch._dynamo.testing import CompileCounterWithBackend

import fxgraft
from benchmarks.bench_seeds import RAMP
from benchmarks.budgets import PER_STRUCTURE, RECOMPILES, Budget
from benchmarks.modes import Mode
from benchmarks.rows import Row, Spread
from benchmarks.settings import Settings
from benchmarks.timing import median_ms, ratio
from benchmarks.workloads import Trainer, Workload

SEEDS = 4


class Grown:
    """A host in training, with its manager."""

    def __init__(self, workload: Workload, mode: Mode):
        self.workload = workload
        self.host = workload.host()
        self.trainer = Trainer(workload, self.host, mode.apply(self.host))
        self.manager = fxgraft.SeedManager(self.host, self.trainer.optimizer)
        self.trainer.after = self.manager.step

    def germinate(self, i: int) -> fxgraft.Seed:
        """A seed at the place number ``i``."""
        workload = self.workload
        return self.manager.germinate(workload.place(i), workload.blueprint, **workload.config)

    def train(self, steps: int = 2) -> None:
        """Some steps."""
        for _ in range(steps):
            self.trainer.step()


def rows(settings: Settings) -> Iterator[Row]:
    """Counts of each workload, by host and by region; times of each, eager and compiled."""
    quick = settings.quick
    name = "MLP-12" if quick else "*"
    for workload, mode in settings.pairs((name, "inductor"), (name, "inductor, by region")):
        yield from _counts(workload, mode)
    for workload, mode in settings.pairs(("MLP-12", "eager"), *(() if quick else [("MLP-12", "inductor")])):
        yield from _times(workload, mode, settings)


def _counts(workload: Workload, mode: Mode) -> Iterator[Row]:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    grown = Grown(workload, Mode(mode.name, {"backend": counter}, mode.granularity))

    def count(what: str, budget: Budget) -> Row:
        found, counter.frame_count = counter.frame_count, 0
        return Row(
            "changes", workload.name, mode.name, what, "", Spread.exactly(found), "compiles", budget,
            note="counted with a backend that compiles nothing",
        )  # fmt: skip

    grown.train()
    counter.frame_count = 0
    seed = grown.germinate(0)
    grown.train()
    grown.manager.blend(seed, steps=4)
    grown.train()
    yield count("a new structure, both its forwards", PER_STRUCTURE)
    _life(grown, seed)
    yield count("alpha, stages, a new target, pause, cull and germination into known structures", RECOMPILES)


def _life(grown: Grown, seed: fxgraft.Seed) -> None:
    """All that may happen to a seed without a new structure."""
    manager = grown.manager
    grown.train(4)
    manager.blend(seed, to=0.5, steps=3, schedule="linear")
    grown.train()
    manager.pause(seed)
    grown.train()
    manager.resume(seed)
    manager.cull(seed)
    grown.train()
    again = grown.germinate(0)
    grown.train()
    manager.blend(again, steps=2)
    grown.train(4)
    manager.cull(again)
    grown.train()


def _times(workload: Workload, mode: Mode, settings: Settings) -> Iterator[Row]:
    moving, still = _blended(workload, mode, RAMP), _blended(workload, mode, 1)
    samples = settings.meter.interleaved(
        {"alpha moves": moving.trainer.step, "alpha stands": still.trainer.step}
    )
    ours, theirs = samples.values()
    what, against = f"step in which {SEEDS} alphas change", "the same step without a change"
    figures = (median_ms(ours), median_ms(theirs))
    where = ("changes", workload.name, mode.name)
    yield Row(*where, what, against, ratio(ours, theirs), "x", None, figures)
    steps, calls, firsts, ordinary = [], [], [], median_ms(theirs) / 1e3
    grown = Grown(workload, mode)
    grown.train()
    for _ in range(settings.repeats):
        seed = grown.germinate(0)
        grown.train()
        calls.append(settings.meter.once("cull", lambda seed=seed: grown.manager.cull(seed)))
        firsts.append(settings.meter.once("first step after a cull", grown.trainer.step))
        steps.append(firsts[-1] / ordinary)
    spread = Spread.of(seconds * 1e3 for seconds in calls)
    yield Row(*where, "cull into a known structure, the call", "", spread, "ms")
    figures = (statistics.median(firsts) * 1e3, ordinary * 1e3)
    yield Row(
        *where,
        "first step after that cull",
        f"a step with {SEEDS} seeds",
        Spread.of(steps),
        "x",
        None,
        figures,
    )


def _blended(workload: Workload, mode: Mode, steps: int) -> Grown:
    grown = Grown(workload, mode)
    for i in range(SEEDS):
        grown.manager.blend(grown.germinate(i), steps=steps, schedule="linear")
    return grown
