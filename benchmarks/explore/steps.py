"""What a training step costs with many candidates beside it, against that of the bare host."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from benchmarks.explore.networks import Block, Decoder, text_batch
from benchmarks.timing import processor_ms
from fxgraft.commands import SEED
from fxgraft.util.interleaved_timing import Step

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
    medians = processor_ms({name: training(size, seeds, x, y) for name, seeds in _arms().items()}, ROUNDS, 3)
    return {
        "d_model": size,
        "ms": medians,
        "ratio": {name: found / medians["bare"] for name, found in medians.items()},
    }


def training(size: int, seeds: list[SEED], x: Tensor, y: Tensor) -> Step:
    """A step of training with these seeds."""
    torch.manual_seed(0)
    host = fxgraft.trace(Blocks(size), (x,))
    optimizer = torch.optim.AdamW(host.parameters(), 1e-3)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    manager.carry_out_together(seeds)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(host(x).flatten(0, 1), y.flatten()).backward()
        optimizer.step()
        manager.step()

    return step
