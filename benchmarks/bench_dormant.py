"""What a host without a seed costs: nothing, it should be.

The bare model, the bare model once more (the noise of this run, A/A), and a host in the hands of a
manager that has no seed, in turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import fxgraft
from benchmarks import budgets
from benchmarks.budgets import Budget
from benchmarks.modes import Mode
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import median_ms, ratio
from benchmarks.workloads import Trainer, Workload

EXTRA = tuple(("MLP-12", mode) for mode in ("aot_eager", "inductor, by region"))
MODES_OF_INDUCTOR = tuple(("MLP-12", mode) for mode in ("reduce-overhead", "max-autotune"))


def rows(settings: Settings) -> Iterator[Row]:
    """Two of each workload and mode: A/A, and the host against the bare model."""
    wanted = [("*", "eager"), ("MLP-12", "inductor")]
    if not settings.quick:
        wanted += [("*", "inductor"), *EXTRA, *MODES_OF_INDUCTOR]
    for workload, mode in settings.pairs(*wanted):
        yield from _compare(workload, mode, settings)


def _compare(workload: Workload, mode: Mode, settings: Settings) -> Iterator[Row]:
    sides = {"bare": _bare(workload, mode), "bare again": _bare(workload, mode)}
    sides["host"] = dormant(workload, mode)
    samples = settings.meter.interleaved({name: trainer.step for name, trainer in sides.items()})
    ms = {name: median_ms(found) for name, found in samples.items()}
    noise = ratio(samples["bare again"], samples["bare"])

    where = ("dormant", workload.name, mode.name)

    def row(what: str, side: str, budget: Budget | None) -> Row:
        found = ratio(samples[side], samples["bare"])
        figures = (ms[side], ms["bare"])
        return Row(*where, what, "the bare model", found, "x", budget, figures, note=mode.note)

    yield row("the bare model again (A/A)", "bare again", None)
    # A noise below 1 is not held against the host.
    budget = replace(budgets.DORMANT, limit=max(noise.median, 1.0) + budgets.DORMANT.limit)
    yield row("step, all slots empty", "host", budget if mode.is_compiled else None)


def _bare(workload: Workload, mode: Mode) -> Trainer:
    model = workload.model()
    return Trainer(workload, model, mode.apply_by_hand(model, workload.blocks))


def dormant(workload: Workload, mode: Mode) -> Trainer:
    """A host with a manager and no seed."""
    host = workload.host()
    trainer = Trainer(workload, host, mode.apply(host))
    trainer.after = fxgraft.SeedManager(host, trainer.optimizer).step
    return trainer
