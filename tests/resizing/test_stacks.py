"""``host.stacks``: containers of alike blocks that run one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from tests.resizing.deep_models import CharGPT, ResNet, TransformerBlock

X = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))


def test_blocks_that_are_not_alike_are_not_of_the_stack() -> None:
    host = fxgraft.trace(ResNet((2, 3)), (torch.randn(2, 3, 16, 16),))
    assert {name: stack.blocks for name, stack in host.stacks.items()} == {
        "layer1": ("layer1.0", "layer1.1"),
        "layer2": ("layer2.1", "layer2.2"),
    }
    assert "several classes" in host.stacks.rejected["layer2.0.downsample"]


class Loop(nn.Module):
    """Runs its blocks in some way."""

    def __init__(self, blocks: int = 3, way: str = "chain"):
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock() for _ in range(blocks))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "beside":
            return torch.stack([block(x) for block in self.blocks]).sum(0)
        if self.way == "twice":
            x = self.blocks[0](x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(("way", "why"), [("beside", "reads what the other returns"), ("twice", "2 times")])
def test_what_is_no_stack_says_why(way: str, why: str) -> None:
    host = fxgraft.trace(Loop(way=way), (X,))
    assert not host.stacks
    assert why in host.stacks.rejected["blocks"]


def test_layers_of_torch_and_empty_containers_are_none() -> None:
    model = nn.Sequential(nn.ModuleList(), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
    model = nn.Sequential(*[module for module in model if not isinstance(module, nn.ModuleList)])
    host = fxgraft.trace(model, (X,))
    assert "of torch's own" in host.stacks.rejected["0"]


class Tuples(nn.Module):
    """Blocks that take a mask and return tuples, called by code without a graph."""

    class MaskedBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: Tensor, mask: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
            seen = torch.relu(self.inner(x)) * mask
            return x + seen * scale, seen

    def __init__(self, blocks: int = 2):
        super().__init__()
        self.blocks = nn.Sequential(*(self.MaskedBlock() for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(4, 16) * (2 if float(x.sum()) > 1e9 else 1)
        for block in self.blocks:
            x, _ = block(x, mask, scale=0.5)
        return x


def test_blocks_that_return_tuples() -> None:
    host = fxgraft.trace(Tuples(), (X,))
    assert host.regions.keys() == {"blocks.0", "blocks.1"}
    call = host.stacks["blocks"].call
    assert (call.input, call.element) == ("x", 0)


def test_the_table_prints_itself_and_is_that_of_now() -> None:
    host = fxgraft.trace(CharGPT(2), (torch.zeros(2, 4, dtype=torch.int64),))
    assert repr(host.stacks) == "'blocks': 2 x TransformerBlock (blocks.0, blocks.1)"
    fxgraft.SeedManager(host).deepen("blocks", name="new")
    assert host.stacks["blocks"].blocks == ("blocks.0", "blocks.1", "_seeds.new.module")
