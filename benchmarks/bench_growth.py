"""What a network costs that has grown deeper and wider, against the same network by hand.

* The step of a grown network, fused and permanent, beside that of a model of its class that was made in that
  size and has its weights (`fxgraft.transplant` puts them there, and proves it).
* Eight blocks inserted in one act on a compiled host: how many graphs that compiles.
* The same act, and a widening, prepared in the background: the longest step, against the recompilation of the
  larger model by hand.

The manager's `step` is part of the step, as it is in training.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import fxgraft
from benchmarks.background import TOO_LONG, seconds
from benchmarks.budgets import GROWN, GROWN_BLOCKS, LONGEST_GROWTH, Budget
from benchmarks.modes import Mode
from benchmarks.rows import Row, Spread
from benchmarks.settings import Settings
from benchmarks.timing import median_ms, ratio, settle
from benchmarks.workloads import WORKLOADS, ConvBlock, MlpBlock, Trainer, Workload

BLOCKS = 8


class HiddenBlock(MlpBlock):
    """``x + down(relu(up(x)))`` with hidden units of a number of its own."""

    def __init__(self, width: int, hidden: int):
        super().__init__(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)


def mlp(blocks: int, hidden: int) -> nn.Module:
    """The MLP of the other benchmarks, its blocks in a container of their own."""
    inner = nn.Sequential(*(HiddenBlock(192, hidden) for _ in range(blocks)))
    return nn.Sequential(nn.Linear(64, 192), inner, nn.Linear(192, 10))


class HiddenConvBlock(ConvBlock):
    """A block of a ResNet with inner channels of a number of its own."""

    def __init__(self, channels: int, inner: int):
        super().__init__(channels)
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)


def resnet(inner: tuple[int, int]) -> nn.Module:
    """The ResNet of the other benchmarks."""
    stages: list[nn.Module] = []
    for (channels, before), width in zip(((16, 3), (32, 16)), inner, strict=True):
        stages += [nn.Conv2d(before, channels, 3, 2, padding=1)]
        stages += [HiddenConvBlock(channels, width) for _ in range(2)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def gpt2(layers: int) -> nn.Module:
    """GPT-2 of the other benchmarks."""
    model = WORKLOADS["GPT-2"].make()
    config = type(model.config)(**{**model.config.to_dict(), "n_layer": layers})  # type: ignore[union-attr, operator]
    return type(model)(config)


@dataclass(frozen=True)
class Grown:
    """A way to grow.

    Attributes:
        workload: with the small model.
        blocks: of the large one, which are compiled one by one by region.
        large: the model by hand.
        grow: what makes it of the small one.
        stack: where further blocks go.
        group: channels that can grow.
    """

    workload: Workload
    blocks: tuple[str, ...]
    large: Callable[[], nn.Module]
    grow: Callable[[fxgraft.SeedManager], object]
    stack: str = ""
    group: str = ""


def _deepen_gpt2(manager: fxgraft.SeedManager) -> None:
    manager.deepen("transformer.h", 3)


def _widen_resnet(manager: fxgraft.SeedManager) -> None:
    with manager.together():
        for block, more in ((1, 16), (2, 16), (4, 32), (5, 32)):
            manager.widen(f"{block}.conv1", more)


def _both(manager: fxgraft.SeedManager) -> None:
    with manager.together():
        new = manager.deepen("1", 6)
        for i in range(6):
            manager.widen(f"1.{i}.up", 96)
        for block in new:
            manager.widen(f"_seeds.{block.name}.module.up", 96)


_MLP = replace(
    WORKLOADS["MLP-12"], name="MLP, deeper and wider", make=lambda: mlp(6, 96), blocks=("1.0", "1.1")
)
GROWN_NETWORKS = (
    Grown(
        replace(WORKLOADS["GPT-2"], name="GPT-2, deeper"),
        tuple(f"transformer.h.{i}" for i in range(6)),
        lambda: gpt2(6),
        _deepen_gpt2,
        "transformer.h",
        "transformer.h.0.mlp.c_fc",
    ),
    Grown(
        replace(WORKLOADS["ResNet"], name="ResNet, wider", make=lambda: resnet((16, 32))),
        ("1", "2", "4", "5"),
        lambda: resnet((32, 64)),
        _widen_resnet,
        "",
        "1.conv1",
    ),
    Grown(_MLP, tuple(f"1.{i}" for i in range(12)), lambda: mlp(12, 192), _both, "1", "1.0.up"),
)


def rows(settings: Settings) -> Iterator[Row]:
    """Steps of each grown network, eager and compiled; an act of eight blocks; growth in the background."""
    networks = GROWN_NETWORKS[2:] if settings.quick else GROWN_NETWORKS
    for grown in networks:
        for mode in _modes(settings, "eager", "inductor"):
            settings.say(f"{grown.workload.name}, {mode.name}")
            yield from _steps(grown, mode, settings)
    for mode in _modes(settings, "inductor", "inductor, by region"):
        yield _graphs(GROWN_NETWORKS[2], mode)
    for mode in _modes(settings, "inductor, by region", *(() if settings.quick else ("inductor",))):
        for what, act in _ACTS.items():
            settings.say(f"{what}, {mode.name}")
            yield from _in_background(GROWN_NETWORKS[2], mode, what, act, settings)


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
        model = grown.large()
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
        model = grown.large()
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
