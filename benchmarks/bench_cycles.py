"""Germinate and cull, 200 times over: does anything stay behind?

Each cycle germinates a seed, trains it, blends it, trains on and culls it. What the process holds after
cycle 20, when everything that is made once has been made, is compared with the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import fxgraft
from benchmarks.budgets import CYCLES
from benchmarks.footprint import footprint, growth
from benchmarks.rows import Row, Spread
from benchmarks.settings import Settings

SETTLED = 20
MANY, FEW = 200, 30
SEEDS = (("1", "mlp", "residual"), ("3", "low_rank", "channelwise"), ("1", "low_rank", "gated"))
COUNTED = {"tensors": "tensors", "linecache_entries": "entries", "fx_loader_entries": "entries"}
"""What is exact, and may not grow at all; resident memory is stated beside it."""


def rows(settings: Settings) -> Iterator[Row]:
    """Four of each mode: growth of resident memory, and of what can be counted."""
    if settings.workloads and "small MLP" not in settings.workloads:
        return
    for backend in ("eager", "aot_eager"):
        if not settings.modes or backend in settings.modes:
            cycles = FEW if settings.quick else MANY
            settings.say(f"{cycles} cycles, {backend}")
            yield from _tell(run(cycles, backend))


def _tell(found: dict[str, Any]) -> Iterator[Row]:
    against = f"after cycle {found['settled_after_cycle']}"
    for name, unit in {**COUNTED, "rss_mib": "MiB"}.items():
        what = f"growth of {name.replace('_', ' ')} in {found['cycles']} cycles"
        budget = CYCLES if name in COUNTED else None
        spread = Spread.exactly(found["growth"][name])
        note = "" if name in COUNTED else "an allocator keeps what it likes"
        figures = (found["end"][name], found["settled"][name])
        yield Row(
            "cycles", "small MLP", found["backend"], what, against, spread, unit, budget, figures, unit, note
        )


def run(cycles: int = MANY, backend: str = "eager") -> dict[str, Any]:
    """The footprint after cycle 20 and after the last one; ``backend`` other than eager compiles."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
    host = fxgraft.trace(model, (x,))
    if backend != "eager":
        host.compile(backend=backend)
    optimizer = torch.optim.AdamW(host.parameters(), 1e-3)
    manager = fxgraft.SeedManager(host, optimizer, sinks=(_ignore,))
    settled = footprint()
    for cycle in range(1, cycles + 1):
        slot, blueprint, mode = SEEDS[cycle % len(SEEDS)]
        seed = manager.germinate(slot, blueprint, mode=mode)
        _train(host, optimizer, manager, x, y)
        manager.blend(seed, steps=2)
        _train(host, optimizer, manager, x, y)
        manager.cull(seed)
        del seed
        if cycle == min(SETTLED, cycles):
            settled = footprint()
    end = footprint()
    return {
        "cycles": cycles,
        "backend": backend,
        "settled_after_cycle": min(SETTLED, cycles),
        "settled": settled,
        "end": end,
        "growth": growth(settled, end),
        "seeds_left": len(manager.seeds),
        "checks": manager.monitor.checks,
        "isolation_violations": manager.monitor.violations,
    }


def _train(host: Any, optimizer: Any, manager: Any, x: torch.Tensor, y: torch.Tensor) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(host(x), y).backward()
        optimizer.step()
        manager.step()


def _ignore(event: fxgraft.telemetry.Event) -> None:
    """A sink, so that events are made."""
