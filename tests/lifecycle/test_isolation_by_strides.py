"""Isolated seeds at values with gaps in memory, or with one element in many places, while another blends."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxgraft

BATCH = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.both, self.middle, self.head = nn.Linear(5, 24), nn.Linear(12, 12), nn.Linear(12, 3)
        self.scale = nn.Parameter(torch.randn(12))

    def forward(self, x):
        gate, value = self.both(x).chunk(2, -1)
        scale = self.scale.expand(x.shape[0], 12)
        return self.head(self.middle(F.silu(gate) * value * F.silu(scale)))


@pytest.mark.parametrize("slot", ["getitem", "expand"])
@pytest.mark.parametrize("mode", ["residual", "convex", "gated", "channelwise"])
@pytest.mark.parametrize("isolated", [True, False])
def test_gradients_are_those_of_a_run_without_the_seed(slot, mode, isolated):
    torch.manual_seed(0)
    host = fxgraft.trace(Halves(), (BATCH,))
    optimizer = torch.optim.SGD(host.parameters(), lr=0.01)
    manager = fxgraft.SeedManager(host, optimizer, strict=True, check_every=1)
    manager.germinate("head", "mlp", name="blends")
    manager.germinate(slot, "mlp", name="learns", mode=mode, isolated=isolated)
    for step in range(6):
        optimizer.zero_grad()
        host(BATCH).square().mean().backward()
        optimizer.step()
        manager.step()  # strict: raises where the bits of a gradient differ
        if step == 1:
            manager.blend("blends", steps=3, force=True)
    assert manager.seeds["blends"].stage is fxgraft.Stage.HOLDING
