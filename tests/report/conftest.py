"""A run that really trained, with every kind of event; read by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.telemetry import JsonLines


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ``events.jsonl`` of 60 steps: one seed kept, one culled, one in training."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 3)
    )
    host = fxgraft.trace(model, (x,))
    host.compile(backend="aot_eager")
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    with JsonLines(folder / "events.jsonl") as sink:
        manager = fxgraft.SeedManager(host, optimizer, sinks=[sink], metrics_every=5)
        actions = {
            5: {"type": "SEED", "slot": "1", "blueprint": "mlp", "name": "kept"},
            6: {"type": "SEED", "slot": "2.1", "blueprint": "mlp", "name": "culled"},
            20: {"type": "BLEND", "seed": "kept", "steps": 10},
            25: {"type": "CULL", "seed": "culled"},
            26: {"type": "CULL", "seed": "nobody"},
            40: {"type": "FOSSILIZE", "seed": "kept"},
            50: {"type": "SEED", "slot": "2.1", "blueprint": "low_rank", "name": "growing"},
        }
        for step in range(1, 61):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(host(x), y)
            loss.backward()
            optimizer.step()
            manager.step(loss)
            if step == 35:
                manager.measure("kept", lambda: nn.functional.cross_entropy(host(x), y))
            if step in actions:
                manager.handle(actions[step])
    return folder
