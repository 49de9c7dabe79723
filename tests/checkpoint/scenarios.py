"""Runs for checkpoint tests: each a host, its optimizers and a course of events, saved at ``SAVE_AT``."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import fxgraft
from fxgraft import SeedManager
from tests.harness import traced_once

SAVE_AT = 6
AFTER = 5


class EveryKindOfState(nn.Module):
    """BatchNorm, dropout, a tied weight, an unused parameter, a buffer that no ``state_dict`` has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.2)
        self.mid = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.mid.weight
        self.head = nn.Linear(6, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1.0)
        x = self.drop(self.relu(self.norm(self.stem(x))))
        x = torch.tanh(self.mid(x)) + 0.01 * self.calls.to(x.dtype)
        return self.head(torch.tanh(self.again(x)))


class Noisy(nn.Module):
    """A branch from code: dropout and BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(self.norm(x)))


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(EveryKindOfState(), (torch.randn(3, 4),))


@dataclass
class Run:
    host: fxgraft.Host
    optimizers: list[Any]
    schedulers: list[Any]
    manager: SeedManager

    def train(self, steps: int, act: Callable[[Run, int], None] = lambda run, step: None) -> list[str]:
        """Losses as text with all their digits; batches from all three global streams."""
        losses = []
        for step in range(steps):
            scale = random.random() + float(np.random.rand())
            dtype = self.host.stem.weight.dtype
            loss = (self.host((torch.randn(5, 4) * scale).to(dtype)).float() - 0.3).square().mean()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            for scheduler in self.schedulers:
                scheduler.step()
            self.manager.step(loss)
            act(self, step)
            losses.append(loss.item().hex())
        return losses


Optimizers = Callable[[fxgraft.Host], list[Any]]
Schedulers = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True)
class Scenario:
    act: Callable[[Run, int], None]
    optimizers: Optimizers = lambda host: [torch.optim.AdamW(host.parameters(), 1e-2)]
    schedulers: Schedulers = lambda optimizers: []
    dtype: torch.dtype = torch.float32
    backend: str | None = None

    def parts(self) -> tuple[fxgraft.Host, list[Any], list[Any]]:
        """Host, optimizers and schedulers as they are before the first step."""
        torch.manual_seed(0)
        host = traced().to(self.dtype)
        if self.backend:
            host.compile(backend=self.backend)
        optimizers = self.optimizers(host)
        return host, optimizers, self.schedulers(optimizers)

    def begin(self) -> Run:
        host, optimizers, schedulers = self.parts()
        random.seed(0)
        np.random.seed(0)
        return Run(host, optimizers, schedulers, SeedManager(host, optimizers, schedulers=schedulers))

    def load(self, path: Path) -> Run:
        """The saved run, after all random streams were moved away."""
        host, optimizers, schedulers = self.parts()
        torch.manual_seed(99)
        random.seed(99)
        np.random.seed(99)
        blueprints = {"Noisy": lambda slot: Noisy(), "slow": lambda slot: nn.Linear(6, 6)}
        manager = SeedManager.load(path, host, optimizers, schedulers=schedulers, blueprints=blueprints)
        return Run(host, optimizers, schedulers, manager)

    def saved(self, path: Path) -> Run:
        """Run up to ``SAVE_AT`` and save."""
        run = self.begin()
        run.train(SAVE_AT, self.act)
        run.manager.save(path)
        return run


def at(**steps: Callable[[SeedManager], Any]) -> Callable[[Run, int], None]:
    """``at(s2=..., s4=...)``: what happens to the manager after these steps."""

    def act(run: Run, step: int) -> None:
        if f"s{step}" in steps:
            steps[f"s{step}"](run.manager)

    return act


def seed(name: str = "a", slot: str = "relu", blueprint: Any = "mlp", **options: Any) -> Callable[..., Any]:
    return lambda m: m.germinate(slot, blueprint, name=name, **options)


def blend(name: str = "a", **options: Any) -> Callable[..., Any]:
    return lambda m: m.blend(name, **{"steps": 2, **options})


def pending(manager: SeedManager) -> None:
    """A seed that is still in preparation when the run is saved; it is never applied."""
    forever = threading.Event()
    manager.germinate("relu", lambda slot: forever.wait(), name="late", wait=False)


def fossil(to: float, mode: str) -> Callable[[Run, int], None]:
    return at(s0=seed(mode=mode), s1=blend(to=to), s4=lambda m: m.fossilize("a"))


def _crowd(manager: SeedManager) -> None:
    for name, mode in (("c", "convex"), ("a", "residual"), ("b", "gated"), ("d", "channelwise")):
        manager.germinate("relu", "low_rank", name=name, mode=mode)
    manager.germinate("tanh", Noisy(), name="Noisy")


def _late_germination(manager: SeedManager) -> None:
    """Asked for first, live second: the order of seeds is not that of the optimizer."""
    release = threading.Event()

    def slow(slot: fxgraft.Slot) -> nn.Module:
        release.wait(10)
        return nn.Linear(6, 6)

    manager.germinate("relu", slow, name="slow", wait=False)
    manager.germinate("relu", "low_rank", name="b", rank=6)
    release.set()
    manager._background.wait(10)


def _two(host: fxgraft.Host) -> list[Any]:
    matrices = [p for p in host.parameters() if p.dim() == 2]
    others = [p for p in host.parameters() if p.dim() != 2]
    return [torch.optim.SGD(matrices, 0.05, momentum=0.9, nesterov=True), torch.optim.AdamW(others, 1e-2)]


def _groups(host: fxgraft.Host) -> list[Any]:
    named = list(host.named_parameters())
    first, rest = named[:3], named[3:]
    return [torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": rest}], 0.01, momentum=0.9)]


def _mixed(manager: SeedManager) -> None:
    manager.blend("a", steps=1)
    manager.blend("c", steps=20, schedule="sigmoid")
    manager.blend("d", steps=9, to=0.7)


def _schedulers(optimizers: list[Any]) -> list[Any]:
    first, second = optimizers
    warm = [lr_scheduler.ConstantLR(second, total_iters=4), lr_scheduler.ExponentialLR(second, 0.9)]
    return [lr_scheduler.MultiStepLR(first, [3, 8]), lr_scheduler.SequentialLR(second, warm, [7])]


SCENARIOS = {
    "no seed": Scenario(at()),
    "germinated": Scenario(at(s3=pending)),
    "training": Scenario(at(s1=seed())),
    "just germinated": Scenario(at(s5=seed())),
    "blending": Scenario(at(s1=seed(), s3=blend(steps=7, schedule="cosine"))),
    "blending down": Scenario(at(s0=seed(), s1=blend(), s4=blend(to=0.1, steps=4, schedule="linear"))),
    "holding": Scenario(at(s1=seed(), s2=blend())),
    "holding below 1": Scenario(at(s1=seed(), s2=blend(to=0.3))),
    "paused in training": Scenario(at(s1=seed(), s4=lambda m: m.pause("a"))),
    "paused in mid-ramp": Scenario(at(s1=seed(), s2=blend(steps=9), s4=lambda m: m.pause("a"))),
    **{
        f"{mode} {what}": Scenario(at(s0=seed(mode=mode), s2=blend(steps=steps, to=0.7)))
        for mode in ("convex", "gated", "channelwise")
        for what, steps in (("blending", 8), ("holding", 3))
    },
    **{
        f"fossil {mode} at {to}": Scenario(fossil(to, mode))
        for mode in ("residual", "convex", "gated", "channelwise")
        for to in (1.0, 0.3)
    },
    "dropout and batch norm in a seed": Scenario(at(s0=seed("Noisy", blueprint=Noisy()))),
    "crowd": Scenario(at(s1=_crowd, s3=_mixed)),
    "crowd, one culled": Scenario(at(s1=_crowd, s2=_mixed, s4=lambda m: m.cull("a"))),
    "culled and grown again": Scenario(
        at(s0=seed(blueprint="mlp"), s2=lambda m: m.cull("a"), s3=seed("b", blueprint="low_rank"))
    ),
    "late germination": Scenario(at(s1=_late_germination)),
    "late germination, momentum": Scenario(
        at(s1=_late_germination), lambda host: [torch.optim.SGD(host.parameters(), 0.05, momentum=0.9)]
    ),
    "two optimizers and schedulers": Scenario(at(s1=_crowd, s3=_mixed), _two, _schedulers),
    "named groups": Scenario(at(s1=seed(), s2=seed("b", "tanh")), _groups),
    "plateau": Scenario(
        at(s1=seed()),
        lambda host: [torch.optim.SGD(host.parameters(), 0.05)],
        lambda optimizers: [lr_scheduler.CosineAnnealingWarmRestarts(optimizers[0], 4)],
    ),
    "bfloat16": Scenario(at(s1=_crowd, s3=_mixed), dtype=torch.bfloat16),
    "float64": Scenario(at(s1=seed(mode="channelwise"), s2=blend(to=0.3, steps=9)), dtype=torch.float64),
    "compiled": Scenario(at(s1=seed(), s3=blend(steps=7)), backend="aot_eager"),
}


def outcome(run: Run) -> dict[str, Any]:
    """What the run does from here on, and how its seeds stand now: compared between processes."""
    seeds = {
        name: [s.stage.name, s.alpha.hex(), s.target, s.ramp_step, s.paused, s.trained_steps]
        for name, s in run.manager.seeds.items()
        if s.module is not None
    }
    codes = {name: region.code for name, region in run.host.regions.items()}
    return {"seeds": seeds, "codes": codes, "losses": run.train(AFTER), "steps": run.manager._reporter.step}


def _resume_all(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    for path in sorted(folder.glob("*.ckpt")):
        found[path.stem] = outcome(SCENARIOS[path.stem].load(path))
    (folder / "resumed.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _resume_all(Path(sys.argv[1]))
