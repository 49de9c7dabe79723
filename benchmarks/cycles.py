"""Germinate and cull, 200 times over: does anything stay behind?

    python -m benchmarks.cycles [--cycles 200] [--backend eager|aot_eager|inductor]

Each cycle germinates a seed, trains it, blends it, trains on and culls it. What the process holds after
cycle 20, when everything that is made once has been made, is compared with the end.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import nn

import fxgraft
from benchmarks.footprint import footprint, growth

SETTLED = 20
SEEDS = (("1", "mlp", "residual"), ("3", "low_rank", "channelwise"), ("1", "low_rank", "gated"))


def run(cycles: int = 200, backend: str = "eager") -> dict[str, Any]:
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cycles", description=__doc__)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--backend", default="eager")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run(options.cycles, options.backend), indent=1))


if __name__ == "__main__":
    main()
