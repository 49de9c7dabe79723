"""``host.stacks``: containers of alike blocks that run one after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.util.bits import same_bits
from tests.resizing.deep_models import IDS, CharGPT, ResNet, TransformerBlock

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


def _mixed(blocks: int) -> nn.Sequential:
    """Blocks in one container with what is in front of and behind them."""
    return nn.Sequential(nn.Linear(16, 16), *(TransformerBlock() for _ in range(blocks)), nn.LayerNorm(16))


@pytest.mark.parametrize("at", [None, "start", "end", [0]])
def test_blocks_among_other_layers_are_a_stack(at: Any) -> None:
    host = fxgraft.trace(_mixed(2), (X,))
    assert host.stacks[""].blocks == ("1", "2")
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = fxgraft.SeedManager(host, optimizer)
    before = host(X)
    count = 1 if at == [0] else 2
    manager.deepen("", count, at=at)
    assert same_bits(host(X), before)
    host(X).square().mean().backward()
    optimizer.step()
    manager.step()
    plain = fxgraft.unwrap(host)
    assert [type(child) for child in plain] == [type(child) for child in _mixed(2 + count)]
    assert same_bits(plain(X), host(X))
    target = _mixed(2 + count)
    assert fxgraft.transplant(host, target).max_abs == 0.0
    assert same_bits(target(X), host(X))


def test_a_grown_container_of_several_classes_is_saved_and_loaded(tmp_path: Path) -> None:
    host = fxgraft.trace(_mixed(2), (X,))
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(host.parameters(), 1e-2))
    manager.deepen("", 2)
    manager.save(tmp_path / "run")
    loaded = fxgraft.load_model(tmp_path / "run", _mixed(2))
    assert same_bits(loaded(X), host.eval()(X))
    assert loaded.stacks[""].blocks == host.stacks[""].blocks


def test_alike_layers_that_do_not_follow_each_other_are_no_stack() -> None:
    model = nn.Sequential(
        TransformerBlock(), nn.Tanh(), TransformerBlock(), nn.Linear(16, 16), nn.Linear(16, 16)
    )
    assert "several classes" in fxgraft.trace(model, (X,)).stacks.rejected[""]


class Named(nn.Module):
    """Blocks with names."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"first": TransformerBlock(), "second": TransformerBlock()})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks.values():
            x = block(x)
        return x


def test_blocks_with_names_are_no_stack_and_it_is_told() -> None:
    manager = fxgraft.SeedManager(fxgraft.trace(Named(), (X,)))
    with pytest.raises(
        fxgraft.errors.SlotError, match=r"got 'blocks': it is an nn.ModuleDict.*expected an nn.Mod"
    ):
        manager.deepen("blocks")


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


class TwoNames(nn.Module):
    """Its first block has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.blocks = nn.ModuleList([self.first, nn.Sequential(nn.Linear(8, 8), nn.ReLU())])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Scan(nn.Module):
    """Reads a tensor and a state; has no graph, as it looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if state.sum() > 1e9:
            return x, state
        state = state + self.inner(x)
        return x + torch.relu(state), state


class Recurrent(nn.Module):
    """Its blocks return a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Scan(), Scan()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x, _ = block(x, torch.zeros_like(x))
        return x


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (TwoNames, "'blocks.0', that is registered as 'first' as well: expected one name for each block"),
        (Recurrent, "a block without a graph, 'blocks.0', that returns a tuple, and no tensor"),
        (partial(Loop, way="beside"), "'blocks.1' is not given a tensor that 'blocks.0' returns"),
    ],
)
def test_the_reason_why_there_is_no_stack_names_the_block(make: Callable[[], nn.Module], why: str) -> None:
    x = X if isinstance(make, partial) else torch.randn(3, 8)
    assert why in fxgraft.trace(make(), (x,)).stacks.rejected["blocks"]


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    host = fxgraft.trace(CharGPT(2), (IDS,))
    with pytest.raises(KeyError, match="'block': there are 1; did you mean 'blocks'"):
        host.stacks["block"]
    with pytest.raises(KeyError, match=r"did you mean 'blocks\.0\.up'"):
        host.slots["blocks.0.upp"]
    assert "block" not in host.stacks
    assert host.stacks.get("block") is None
