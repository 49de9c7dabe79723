"""What a network costs that has grown deeper and wider, against the same network by hand.

* The step of a grown network (deeper, wider, or with branches that were fused), beside that of a model of its
  class that was made in that size and has its weights (`fxgraft.transplant` puts them there, and proves it);
  small ones, and such of an ordinary size.
* Eight blocks inserted in one act on a compiled host: how many graphs that compiles.
* The same act, and a widening, prepared in the background: the longest step, against the recompilation of the
  larger model by hand.

The manager's `step` is part of the step, as it is in training.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch._dynamo.testing import CompileCounterWithBackend

import fxgraft
from benchmarks.background import TOO_LONG, seconds
from benchmarks.budgets import GROWN, GROWN_BLOCKS, LONGEST_GROWTH, Budget
from benchmarks.grown_networks import MLP, ORDINARY, SMALL, Grown
from benchmarks.modes import Mode
from benchmarks.rows import Row, Spread
from benchmarks.settings import Settings
from benchmarks.timing import median_ms, ratio, settle
from benchmarks.workloads import Trainer

BLOCKS = 8


def rows(settings: Settings) -> Iterator[Row]:
    """Steps of each grown network, eager and compiled; an act of eight blocks; growth in the background."""
    networks = (MLP,) if settings.quick else (*SMALL, *ORDINARY)
    for grown in networks:
        for mode in _modes(settings, "eager", "inductor"):
            settings.say(f"{grown.workload.name}, {mode.name}")
            yield from _steps(grown, mode, settings)
    for mode in _modes(settings, "inductor", "inductor, by region"):
        yield _graphs(MLP, mode)
    for mode in _modes(settings, "inductor, by region", *(() if settings.quick else ("inductor",))):
        for what, act in _ACTS.items():
            settings.say(f"{what}, {mode.name}")
            yield from _in_background(MLP, mode, what, act, settings)


def _modes(settings: Settings, *names: str) -> Iterator[Mode]:
    for _, mode in settings.pairs(*(("MLP-12", name) for name in names)):
        yield mode


def pair(grown: Grown, mode: Mode) -> tuple[Trainer, Trainer, Trainer]:
    """The grown network, the same by hand, and that by hand once more; with equal weights."""
    host = grown.workload.host()
    trainer = Trainer(grown.workload, host, mode.apply(host))
    manager = fxgraft.SeedManager(host, trainer.optimizer)
    trainer.after = manager.step
    grown.grow(manager)
    models = []
    for _ in range(3):  # what comes once after a change is over before the clock runs
        trainer.step()
    for _ in range(2):
        torch.manual_seed(0)
        model = grown.by_hand()
        fxgraft.transplant(host, model)
        models.append(Trainer(grown.workload, model, mode.apply_by_hand(model, grown.blocks)))
    return trainer, models[0], models[1]


def _steps(grown: Grown, mode: Mode, settings: Settings) -> Iterator[Row]:
    ours, theirs, again = pair(grown, mode)
    samples = settings.meter.interleaved({"grown": ours.step, "by hand": theirs.step, "again": again.step})
    noise = ratio(samples["again"], samples["by hand"])
    where = ("growth", grown.workload.name, mode.name)
    figures = (median_ms(samples["again"]), median_ms(samples["by hand"]))
    yield Row(*where, "the network by hand again (A/A)", "by hand", noise, "x", None, figures)
    budget = replace(GROWN, limit=max(noise.high, 1.0))
    figures = (median_ms(samples["grown"]), figures[1])
    found = ratio(samples["grown"], samples["by hand"])
    yield Row(*where, "step of the grown network", "by hand", found, "x", budget, figures)


def _graphs(grown: Grown, mode: Mode) -> Row:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    host = grown.workload.host()
    counted = Mode(mode.name, {"backend": counter}, mode.granularity)
    trainer = Trainer(grown.workload, host, counted.apply(host))
    manager = fxgraft.SeedManager(host, trainer.optimizer)
    trainer.after = manager.step
    for _ in range(2):
        trainer.step()
    counter.frame_count = 0
    seeds = manager.deepen(grown.stack, BLOCKS, isolated=True)
    for _ in range(2):
        trainer.step()
    with manager.together():
        for seed in seeds:
            manager.blend(seed, steps=2)
    for _ in range(4):
        trainer.step()
    what = f"{BLOCKS} blocks inserted in one act, isolated, then blended"
    found = Spread.exactly(counter.frame_count)
    note = "counted with a backend that compiles nothing"
    # By region, blocks of the host with one and with two blocks behind them are compiled each.
    budget = GROWN_BLOCKS if mode.granularity == "host" else None
    return Row("growth", grown.workload.name, mode.name, what, "", found, "compiles", budget, note=note)


def _insert(grown: Grown, manager: fxgraft.SeedManager) -> Callable[[], bool]:
    seeds = manager.deepen(grown.stack, BLOCKS, wait=False)
    return lambda: all(seed.stage is fxgraft.Stage.FOSSILIZED for seed in seeds)


def _widen(grown: Grown, manager: fxgraft.SeedManager) -> Callable[[], bool]:
    done = manager.widen(grown.group, 96, wait=False)
    return lambda: done.done


_ACTS = {f"{BLOCKS} blocks inserted": _insert, "a widening": _widen}


def _in_background(
    grown: Grown,
    mode: Mode,
    what: str,
    act: Callable[[Grown, fxgraft.SeedManager], Callable[[], bool]],
    settings: Settings,
) -> Iterator[Row]:
    recompile, longest, first, took, ordinary = [], [], [], [], []
    for _ in range(1 if settings.quick else min(settings.repeats, 3)):
        model = grown.by_hand()
        by_hand = Trainer(grown.workload, model, mode.whole.apply_by_hand(model, grown.blocks))
        with settings.empty_cache():
            recompile.append(seconds(by_hand.step))
        host = grown.workload.host()
        trainer = Trainer(grown.workload, host, mode.apply(host))
        manager = fxgraft.SeedManager(host, trainer.optimizer)
        trainer.after = manager.step
        for _ in range(3):
            trainer.step()
        settle()
        ordinary.append(statistics.median(seconds(trainer.step) for _ in range(20)))
        with settings.empty_cache():
            began = time.perf_counter()
            is_there = act(grown, manager)
            trainer.step()
            steps = [time.perf_counter() - began]  # the call is in the first
            while not is_there():
                steps.append(seconds(trainer.step))
                if time.perf_counter() - began > TOO_LONG:
                    raise RuntimeError(f"{what}: not there after {TOO_LONG:g} s")
            took.append(time.perf_counter() - began)
            first.append(seconds(trainer.step))
        second = seconds(trainer.step)  # which compares gradients with eager mode
        longest.append(max(*steps, first[-1], second))
    where = ("growth", grown.workload.name, mode.name)
    stall = statistics.median(recompile)

    def row(name: str, against: str, values: list[float], base: float, budget: Budget | None = None) -> Row:
        sides = (statistics.median(values) * 1e3, base * 1e3)
        spread = Spread.of(value / base for value in values)
        return Row(*where, f"{what}: {name}", against, spread, "x", budget, sides)

    step = statistics.median(ordinary)
    yield row("longest step, in the background", "the recompile by hand", longest, stall, LONGEST_GROWTH)
    yield row("first step after it", "the median step", first, step)
    yield row("until it is there", "the recompile by hand", took, stall)
