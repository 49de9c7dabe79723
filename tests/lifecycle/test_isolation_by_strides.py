"""Isolated seeds at values with gaps in memory, or with one element in many places, while another blends."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxgraft
from fxgraft.host.compile_report import compile_report

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


@pytest.mark.parametrize("mode", ["residual", "convex"])
def test_compiled_code_is_that_of_eager_mode_there(mode):
    torch.manual_seed(0)
    host = fxgraft.trace(Halves(), (BATCH,))
    host.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(host.parameters(), lr=0.01)
    manager = fxgraft.SeedManager(host, optimizer, strict=True, check_every=1)
    manager.germinate("head", "mlp", name="blends")
    manager.germinate("getitem", "mlp", name="learns", mode=mode)
    for name in ("blends", "learns"):
        manager.blend(name, steps=2, force=True)
        for _ in range(4):
            optimizer.zero_grad()
            host(BATCH).square().mean().backward()
            optimizer.step()
            manager.step()
    assert not any(row.distrusted for row in compile_report(host).variants)


def test_a_blend_of_a_part_of_a_value_runs_under_vmap():
    host = fxgraft.trace(Halves(), (BATCH,)).eval()
    manager = fxgraft.SeedManager(host)
    manager.germinate("getitem", "mlp", name="a", isolated=False)
    manager.blend("a", to=0.5, steps=0)
    each = torch.vmap(lambda x: host(x[None])[0])(BATCH)
    torch.testing.assert_close(each, host(BATCH))
