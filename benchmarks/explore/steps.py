"""What a training step costs with many candidates beside it, against that of the bare host."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import fxgraft
from benchmarks.explore.networks import Block, Decoder, text_batch
from fxgraft.commands import SEED

ROUNDS, BATCH, LENGTH, BLOCKS = 15, 16, 64, 4


class Blocks(Decoder):
    """Four equal blocks."""

    def __init__(self, size: int):
        super().__init__(size=size, length=LENGTH)
        self.blocks = nn.ModuleList(Block(size, 4, 4 * size) for _ in range(BLOCKS))


def _arms() -> dict[str, list[SEED]]:
    parts = ("out", "down", "up", "qkv")
    forty = [
        SEED(slot=f"blocks.{i}.{part}", blueprint=blueprint)
        for i in range(BLOCKS)
        for part in ("out", "down", "ln1", "ln2", "gelu")
        for blueprint in ("low_rank", "scale_shift")
    ]
    return {
        "bare": [],
        "1 low_rank": [SEED(slot="blocks.1.down", blueprint="low_rank")],
        "16 low_rank at one slot": [SEED(slot="blocks.1.down", blueprint="low_rank") for _ in range(16)],
        "16 low_rank at 16 slots": [
            SEED(slot=f"blocks.{i}.{part}", blueprint="low_rank") for i in range(BLOCKS) for part in parts
        ],
        "40 at 20 slots": forty,
    }


def steps(size: int) -> dict[str, Any]:
    """CPU milliseconds of a step of each arm, in turns; and what they are of the bare host's."""
    x, y = text_batch(torch.Generator().manual_seed(0), BATCH, length=LENGTH)
    runs: dict[str, Any] = {}
    for name, seeds in _arms().items():
        torch.manual_seed(0)
        host = fxgraft.trace(Blocks(size), (x,))
        optimizer = torch.optim.AdamW(host.parameters(), 1e-3)
        manager = fxgraft.SeedManager(host, optimizer, check_every=0)
        manager.carry_out_together(seeds)
        runs[name] = host, optimizer, manager
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 3):
        for name, (host, optimizer, manager) in runs.items():
            began = time.process_time()
            optimizer.zero_grad()
            F.cross_entropy(host(x).flatten(0, 1), y.flatten()).backward()
            optimizer.step()
            manager.step()
            if turn >= 3:
                times[name].append((time.process_time() - began) * 1e3)
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "d_model": size,
        "ms": medians,
        "ratio": {name: found / medians["bare"] for name, found in medians.items()},
    }
