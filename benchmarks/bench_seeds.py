"""What live seeds cost, against the same network with the same seeds written by hand.

In isolation the seeds learn by the trust objective; blending, alpha moves in every step. By hand there is
neither the look at whether a seed's gradients are finite nor the isolation check (which comes once after
a change, here before the clock runs, and every 500 steps).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

import fxgraft
from benchmarks import budgets, by_hand
from benchmarks.background import train_until_idle
from benchmarks.modes import Mode
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import median_ms, ratio
from benchmarks.workloads import Trainer, Workload

SEEDS = (1, 4, 16)
FEW = (4,)
STAGES = ("isolated", "blending")
EAGER_STAGES = (*STAGES, "convex blending")
RAMP = 1_000_000
"""Steps: so long that alpha never arrives."""


def rows(settings: Settings) -> Iterator[Row]:
    """One for each workload, mode, number of seeds and stage."""
    wanted = [("MLP-12", "eager"), ("MLP-12", "inductor")]
    if not settings.quick:
        wanted += [("*", "eager"), ("*", "inductor"), ("MLP-12", "inductor, by region")]
    for workload, mode in settings.pairs(*wanted):
        # Each number of seeds is four compilations more: all of them for one compiled workload only.
        every = mode.name == "eager" or (workload.name, mode.name) == ("MLP-12", "inductor")
        numbers = SEEDS if every and not settings.quick else FEW
        yield from compare(workload, mode, numbers, settings)


def compare(workload: Workload, mode: Mode, numbers: tuple[int, ...], settings: Settings) -> Iterator[Row]:
    """One row for each number of seeds and stage."""
    stages = STAGES if mode.is_compiled else EAGER_STAGES
    pairs = {(k, stage): _at_work(workload, mode, k, stage) for k in numbers for stage in stages}
    steps = {}
    for key, (ours, theirs) in pairs.items():
        steps |= {f"{key}": ours.step, f"{key} by hand": theirs.step}
    samples = settings.meter.interleaved(steps)
    for k, stage in pairs:
        budget = budgets.SEEDS_COMPILED if mode.is_compiled else budgets.SEEDS_EAGER
        if stage == "convex blending":
            budget = budgets.CONVEX_EAGER
        ours, theirs = samples[f"{(k, stage)}"], samples[f"{(k, stage)} by hand"]
        what = f"step, {k} {stage} seed{'s' * (k > 1)}"
        figures = (median_ms(ours), median_ms(theirs))
        found = ratio(ours, theirs)
        yield Row("seeds", workload.name, mode.name, what, "by hand", found, "x", budget, figures)


def _at_work(workload: Workload, mode: Mode, k: int, stage: str) -> tuple[Trainer, Trainer]:
    """A pair that trains, with all its code: what the helper makes for blending seeds included."""
    ours, manager = grown(workload, mode, k, stage)
    theirs = twin(workload, mode, stage, manager)
    ours.step()
    theirs.step()
    train_until_idle(ours, manager)
    return ours, theirs


def pair(workload: Workload, mode: Mode, k: int, stage: str) -> tuple[Trainer, Trainer]:
    """The same network twice, down to the weights of its seeds: grown, and by hand."""
    ours, manager = grown(workload, mode, k, stage)
    return ours, twin(workload, mode, stage, manager)


def grown(workload: Workload, mode: Mode, k: int, stage: str) -> tuple[Trainer, fxgraft.SeedManager]:
    """A host with ``k`` seeds."""
    host = workload.host()
    trainer = Trainer(workload, host, mode.apply(host))
    manager = fxgraft.SeedManager(host, trainer.optimizer)
    trainer.after = manager.step
    kind = "convex" if "convex" in stage else "residual"
    for i in range(k):
        name = f"s{i:02d}"
        seed = manager.germinate(
            workload.place(i), workload.blueprint, name=name, mode=kind, **workload.config
        )
        if stage != "isolated":
            manager.blend(seed, steps=RAMP, schedule="linear")
    return trainer, manager


def twin(workload: Workload, mode: Mode, stage: str, manager: fxgraft.SeedManager) -> Trainer:
    """The network that ``manager`` has grown, by hand; it shares nothing with that one."""
    model, seeds = workload.model(), []
    for i, seed in enumerate(manager.seeds.values()):
        assert seed.module is not None
        module = copy.deepcopy(seed.module)
        seeds.append(by_hand.graft(model, workload.place(i), module, stage))
    trainer = Trainer(workload, model, mode.apply_by_hand(model, workload.blocks))
    if stage != "isolated":
        trainer.after = Ramp(seeds)
    return trainer


class Ramp:
    """Moves alpha as `fxgraft.SeedManager.step` does."""

    def __init__(self, seeds: list[torch.nn.Module]):
        self._alphas: list[torch.Tensor] = [seed.alpha for seed in seeds]  # type: ignore[misc]
        self._step = 0

    def __call__(self) -> None:
        self._step += 1
        for alpha in self._alphas:
            alpha.fill_(self._step / RAMP)
