"""Blocks that are hard to copy: sizes that count up, mixed kinds, other outputs, weights kept elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxgraft
from fxgraft.commands import DEEPEN
from fxgraft.errors import BlueprintError, TransplantError

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(1))
WIDTH = 12


class Stacked(nn.Module):
    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.inp, self.blocks = nn.Linear(4, WIDTH), nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Mlp(nn.Module):
    def __init__(self, hidden: int = 16):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def made(
    net: nn.Module, kind: Callable[..., Any] = torch.optim.AdamW, x: torch.Tensor = X
) -> tuple[fxgraft.Host, Any, fxgraft.SeedManager]:
    host = fxgraft.trace(net, (x,))
    optimizer = kind(host.parameters(), lr=1e-2)
    return host, optimizer, fxgraft.SeedManager(host, optimizer)


def train(host: fxgraft.Host, optimizer: Any, manager: fxgraft.SeedManager, steps: int) -> None:
    x = X.to(next(host.parameters()).dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(host(x).float(), Y)
        loss.backward()
        optimizer.step()
        manager.step(loss)


class Grouped(nn.Module):
    def __init__(self, groups: int):
        super().__init__()
        self.norm, self.layer = nn.GroupNorm(groups, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(torch.relu(self.norm(x)))


class Repeated(nn.Module):
    """A size of its own class that counts up over the blocks, under a name that is no number of a layer."""

    def __init__(self, times: int):
        super().__init__()
        self.times, self.layer = times, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = x + torch.tanh(self.layer(x))
        return x


@pytest.mark.parametrize(
    "blocks", [[Grouped(1), Grouped(2)], [Grouped(3), Grouped(4)], [Repeated(1), Repeated(2)]]
)
def test_a_size_that_counts_up_over_the_blocks_is_no_number_of_a_layer(blocks: list[nn.Module]):
    host, _, manager = made(Stacked(blocks))
    (seed,) = manager.deepen("blocks", init="copy", at=[1])
    z = torch.randn(5, WIDTH)
    assert torch.equal(seed.module(z), blocks[1](z))
    host(X)


TABLE = [1.0, 2.0]


class Indexed(nn.Module):
    """Without a graph; reads a list by the number of the layer."""

    def __init__(self, idx: int):
        super().__init__()
        self.idx, self.layer = idx, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum().item() > 1e9:
            return x
        return x + self.layer(x) * TABLE[self.idx]


def test_a_block_that_fails_where_its_equal_runs_is_refused():
    host, _, manager = made(Stacked([Indexed(0), Indexed(1)]))
    with pytest.raises(BlueprintError, match="it fails: IndexError"):
        manager.deepen("blocks", init="copy")
    host(X)
    assert not manager.seeds


class Kinds(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        if kind == "mix":
            self.mix = nn.Linear(WIDTH, WIDTH)
        else:
            self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (self.mix(torch.tanh(x)) if self.kind == "mix" else self.mlp(torch.relu(x)))


@pytest.mark.parametrize(("at", "like", "layer"), [(1, 0, "mix"), (0, 1, "mlp")])
def test_the_output_layers_of_the_block_that_is_copied_are_zeroed(at: int, like: int, layer: str):
    host, _, manager = made(Stacked([Kinds("mix"), Kinds("mlp")]))
    before = host(X)
    (seed,) = manager.deepen("blocks", at=[at], like=[like])
    assert torch.equal(host(X), before)
    zeroed = seed.module.get_submodule(layer)
    assert not zeroed.weight.any()
    assert not zeroed.bias.any()


@pytest.mark.parametrize(("at", "like"), [("start", None), ("end", [0])])
def test_the_budget_of_a_growth_is_that_of_the_block_that_is_copied(at: Any, like: Any):
    host, _, manager = made(Stacked([Mlp(256), Mlp(4)]))
    block = DEEPEN(stack="blocks", at=at, like=like)
    with pytest.raises(ValueError, match=r"a block has 6,412 parameters; there is room for"):
        manager.autogrow(lambda: cross_entropy(host(X), Y), block, budget=1.05)


def test_a_budget_has_no_upper_bound():
    host, optimizer, manager = made(Stacked([Mlp(), Mlp()]))
    growth = manager.autogrow(
        lambda: cross_entropy(host(X), Y), DEEPEN(stack="blocks"), budget=1e308, when=[0.1], total_steps=20,
        hold=2,
    )  # fmt: skip
    train(host, optimizer, manager, 10)
    assert growth.history


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.layer = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate = self.gate(x).softmax(-1)
        return x + self.layer(x) * gate[..., :1], gate.mean(0).square().sum()


class Balanced(Stacked):
    def __init__(self, sums: bool):
        super().__init__([Routed(), Routed()])
        self.sums = sums

    def forward(self, x: torch.Tensor) -> Any:
        x, total = self.inp(x), 0.0
        for block in self.blocks:
            x, loss = block(x)
            total = total + loss if self.sums else total
        return (self.head(x), total) if self.sums else self.head(x)


@pytest.mark.parametrize("sums", [True, False])
def test_what_blocks_return_beside_is_named_where_the_model_reads_it(sums: bool, caplog):
    _, _, manager = made(Balanced(sums))
    with caplog.at_level(logging.WARNING, "fxgraft"):
        manager.deepen("blocks", count=2, init="copy")
    said = [r.getMessage() for r in caplog.records if "uses more of what its blocks return" in r.getMessage()]
    assert len(said) == sums or len(said) == 2 * sums
    assert all("([1])" in text for text in said)


class Bent(nn.Linear):
    """With a parameter that the inherited reset does not know."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.bend = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.bend


class Around(nn.Module):
    def __init__(self, layer: nn.Module, gate: float | None = None):
        super().__init__()
        self.layer = layer
        self.gate = None if gate is None else nn.Parameter(torch.full((1,), gate))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.layer(x))
        return x + (y if self.gate is None else self.gate * y)


def weight_normed() -> nn.Module:
    return Around(nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)))


def spectral_normed() -> nn.Module:
    return Around(nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("block", "name"),
    [
        (weight_normed, "layer.weight_g"),
        (spectral_normed, "layer.weight_orig"),
        (lambda: Around(Bent()), "layer.bend"),
        (lambda: Around(nn.Linear(WIDTH, WIDTH), gate=0.0), "gate"),
    ],
)
def test_a_random_block_has_no_trained_value_in_it(block: Callable[[], nn.Module], name: str):
    host, optimizer, manager = made(Stacked([block(), block()]))
    train(host, optimizer, manager, 5)
    with pytest.raises(BlueprintError, match=f"nothing does so for {name}"):
        manager.deepen("blocks", init="random")


def test_what_begins_with_one_number_stays_as_it_began():
    host, _, manager = made(Stacked([Around(nn.Linear(WIDTH, WIDTH), gate=0.0) for _ in range(2)]))
    (seed,) = manager.deepen("blocks", init="random", at=[1])
    assert seed.module.gate.item() == 0.0
    assert not torch.equal(seed.module.layer.weight, host.get_submodule("blocks.1").layer.weight)
    assert all(bool(p.isfinite().all()) for p in seed.module.parameters())


class Masters(torch.optim.Optimizer):
    """Weights of few digits, with a float32 copy of them in the state."""

    def __init__(self, parameters: Any, lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state.setdefault("master", p.detach().float().clone())
                    state["master"].sub_(p.grad.float(), alpha=group["lr"])
                    p.copy_(state["master"])


CHANGES: dict[str, Callable[[fxgraft.SeedManager], Any]] = {
    "none": lambda m: None,
    "widen": lambda m: m.widen("blocks.0.up", 16),
    "split": lambda m: m.widen("blocks.0.up", 16, init="split", optimizer_state="copy"),
    "zeroed": lambda m: m.deepen("blocks", optimizer_state="copy"),
    "copied": lambda m: m.deepen("blocks", init="copy", optimizer_state="copy"),
}


@pytest.mark.parametrize("kind", [Masters, torch.optim.ASGD])
@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_of_the_weights_in_an_optimizer_follows_them(change: str, kind: type):
    dtype = torch.bfloat16 if kind is Masters else torch.float32
    host, optimizer, manager = made(Stacked([Mlp(), Mlp()]).to(dtype), kind, X.to(dtype))
    train(host, optimizer, manager, 3)
    kept = {p: dict(optimizer.state[p]) for p in optimizer.state}
    CHANGES[change](manager)
    key = "master" if kind is Masters else "ax"
    for parameter, state in optimizer.state.items():
        if key in state:
            assert state[key].shape == parameter.shape
            if kind is Masters:
                assert torch.equal(state[key].to(dtype), parameter)
    inp = host.get_parameter("inp.weight")
    assert torch.equal(optimizer.state[inp][key], kept[inp][key]), "what has not changed has all its digits"
    if kind is torch.optim.ASGD:  # whose steps have a size of their own
        return
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = host(X.to(dtype))
    train(host, optimizer, manager, 1)
    assert torch.equal(host(X.to(dtype)), before)


def test_parameters_in_no_optimizer_are_named(caplog):
    host = fxgraft.trace(Stacked([Mlp(), Mlp()]), (X,))
    trained = [p for name, p in host.named_parameters() if "down" not in name]
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(trained))
    with caplog.at_level(logging.WARNING, "fxgraft"):
        manager.deepen("blocks")
    assert "are in no optimizer (down.weight, down.bias)" in caplog.text


class Looped(Stacked):
    """Runs as many blocks as it was told, however many there are."""

    def __init__(self, blocks: list[nn.Module], loops: int):
        super().__init__(blocks)
        self.loops = loops

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        for i in range(self.loops):
            x = self.blocks[i](x)
        return self.head(x)


def test_a_zeroed_block_that_would_not_run_is_not_taken_for_one_that_changes_nothing(caplog):
    host, _, manager = made(Looped([Mlp(), Mlp()], 2))
    manager.deepen("blocks", at="end")
    with caplog.at_level(logging.WARNING, "fxgraft"):
        plain = fxgraft.unwrap(host)
    assert "they run as parts of the blocks in front of them" in caplog.text
    cross_entropy(plain(X), Y).backward()
    new = [p for name, p in plain.named_parameters() if "seed_" in name and "down" in name]
    assert new
    assert all(p.grad is not None for p in new)
    with pytest.raises(TransplantError, match=r"does not run its 'blocks\.2'"):
        fxgraft.transplant(host, Looped([Mlp(), Mlp(), Mlp()], 2))
    target = Looped([Mlp(), Mlp(), Mlp()], 3)
    assert fxgraft.transplant(host, target).max_abs == 0.0
    assert torch.equal(target(X), host(X))
