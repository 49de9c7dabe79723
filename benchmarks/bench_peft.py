"""Twelve adapters of rank 4 on a compiled model in training, by fxgraft and by PEFT.

Both put ``B A`` on the same twelve linear layers of MLP-12, of the same rank, with the model's own
weights trained as well. PEFT's reads the input of its layer and fxgraft's ``low_rank`` seed the output,
which for these square layers is the same number of parameters and operations. Each compilation that is
measured begins with an empty cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import fxgraft
from benchmarks.background import prepare, seconds, train_until_idle
from benchmarks.budgets import PEFT
from benchmarks.modes import Mode
from benchmarks.rows import Row, Spread
from benchmarks.settings import Settings
from benchmarks.timing import median_ms, ratio, settle
from benchmarks.workloads import Trainer, Workload

RANK = 4
TARGET = "up"


@dataclass
class Found:
    """Seconds, of each repeat."""

    longest: list[float] = field(default_factory=list)
    until_live: list[float] = field(default_factory=list)
    rescale: list[float] = field(default_factory=list)


def rows(settings: Settings) -> Iterator[Row]:
    """Four of each granularity."""
    wanted = [("MLP-12", "inductor, by region")]
    for workload, mode in settings.pairs(*wanted, *(() if settings.quick else [("MLP-12", "inductor")])):
        yield from compare(workload, mode, settings)


def compare(workload: Workload, mode: Mode, settings: Settings) -> Iterator[Row]:
    """Both sides in turns."""
    ours, theirs = Found(), Found()
    for i in range(settings.repeats):
        settings.say(f"{workload.name}, {mode.name}: repeat {i + 1} of {settings.repeats}")
        by_peft = _by_peft(workload, mode, theirs, settings)
        grown = _grown(workload, mode, ours, settings)
    against = "PEFT: inject, and the first step"
    where = ("peft", workload.name, mode.name)

    def row(what: str, a: list[float], b: list[float], against: str) -> Row:
        each = Spread.of(x / y for x, y in zip(a, b, strict=True))
        figures = (statistics.median(a), statistics.median(b))
        return Row(*where, what, against, each, "x", PEFT, figures, "s")

    many = f"{len(workload.blocks)} germinations in the background"
    yield row(f"{many}: the longest step", ours.longest, theirs.longest, against)
    yield row(f"{many}: until live", ours.until_live, theirs.until_live, against)
    rescaled = "PEFT: another scale, and the first step"
    yield row("another alpha, and the first step", ours.rescale, theirs.rescale, rescaled)
    samples = settings.meter.interleaved({"fxgraft": grown.step, "PEFT": by_peft.step})
    a, b = samples.values()
    figures = (median_ms(a), median_ms(b))
    yield Row(*where, "step", "PEFT: step", ratio(a, b), "x", PEFT, figures)


def _by_peft(workload: Workload, mode: Mode, found: Found, settings: Settings) -> Trainer:
    from peft import LoraConfig, inject_adapter_in_model

    model = workload.model()
    trainer = Trainer(workload, model, mode.whole.apply_by_hand(model, workload.blocks))
    _train(trainer)
    own = {id(p) for p in model.parameters()}

    def inject() -> None:
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[TARGET]), model)
        model.requires_grad_(True)
        added = [p for p in model.parameters() if id(p) not in own]
        trainer.optimizer.add_param_group({"params": added})
        trainer.step()

    def rescale() -> None:
        for module in model.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", 0.5)
        trainer.step()

    with settings.empty_cache():
        found.until_live.append(seconds(inject))
    found.longest.append(found.until_live[-1])
    with settings.empty_cache():
        found.rescale.append(seconds(rescale))
    return trainer


def _grown(workload: Workload, mode: Mode, found: Found, settings: Settings) -> Trainer:
    host = workload.host()
    trainer = Trainer(workload, host, mode.apply(host))
    manager = fxgraft.SeedManager(host, trainer.optimizer)
    trainer.after = manager.step
    _train(trainer)
    settle()

    def germinate() -> list[fxgraft.Seed]:
        slots = [f"{block}.{TARGET}" for block in workload.blocks]
        return [manager.germinate(s, "low_rank", rank=RANK, isolated=False, wait=False) for s in slots]

    def rescale() -> None:
        for seed in manager.seeds:
            manager.blend(seed, to=0.5, steps=1)
        manager.step()  # where a training loop is, between two steps: alpha is 0.5 now
        trainer.step()

    with settings.empty_cache():
        preparation = prepare(trainer, germinate)
        found.until_live.append(preparation.took + preparation.first)
        found.longest.append(preparation.longest)
        for seed in manager.seeds:
            manager.blend(seed, steps=1)
        _train(trainer)
        train_until_idle(trainer, manager)
        found.rescale.append(seconds(rescale))
        train_until_idle(trainer, manager)
    return trainer


def _train(trainer: Trainer) -> None:
    for _ in range(3):
        trainer.step()
