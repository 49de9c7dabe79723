"""Stacks of blocks without a graph, torch's own ones among them: deepened, saved, unwrapped, transplanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.errors import SlotError
from tests.harness import assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")

X = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
PAD = torch.arange(6).expand(4, 6) >= torch.tensor([[6], [5], [4], [6]])
SETTINGS = {"d_model": 16, "nhead": 2, "dim_feedforward": 24, "dropout": 0.0, "batch_first": True}


def layer(norm_first: bool = True) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(**SETTINGS, norm_first=norm_first)


class Encoder(nn.Module):
    """Torch's container calls the blocks."""

    def __init__(self, blocks: int, norm_first: bool = True) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(layer(norm_first), blocks, enable_nested_tensor=False)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(self.stem(x), src_key_padding_mask=pad))


class Loop(nn.Module):
    """Code that has a graph calls them."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(layer() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Both(nn.Module):
    """Encoder and decoder, with the memory as a further argument."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        sizes = {**SETTINGS, "norm_first": True}
        self.inner = nn.Transformer(num_encoder_layers=2, num_decoder_layers=blocks, **sizes)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x[:, :3])


def among(blocks: int) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), *(layer() for _ in range(blocks)), nn.Linear(16, 3))


ENCODER = {"self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias"}
DECODER = {*ENCODER, "multihead_attn.out_proj.weight", "multihead_attn.out_proj.bias"}
CASES: dict[str, tuple[Callable[[int], nn.Module], str, set[str]]] = {
    "in torch's container": (Encoder, "encoder.layers", ENCODER),
    "in a loop": (Loop, "blocks", ENCODER),
    "among other layers": (among, "", ENCODER),
    "with a memory": (Both, "inner.decoder.layers", DECODER),
}


def zeroed(module: nn.Module) -> set[str]:
    born = ("norm1.bias", "norm2.bias", "norm3.bias", "in_proj_bias")
    return {n for n, p in module.named_parameters() if not p.any() and not n.endswith(born)}


class Run:
    def __init__(self, make: Callable[[int], nn.Module]):
        torch.manual_seed(0)
        self.host = fxgraft.trace(make(2), (X,))
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer, check_every=0)

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            train(self.host, self.optimizer)
            self.manager.step()


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def seen(model: nn.Module) -> list[Tensor]:
    """What it returns in train mode, in eval mode, and in eval mode by torch's fast path."""
    found = [model.train()(X).detach(), model.eval()(X).detach()]
    with torch.no_grad():
        return [*found, model(X)]


@pytest.mark.parametrize("name", CASES)
def test_they_are_deepened_and_end_as_the_plain_model_of_that_size(name: str, tmp_path: Path) -> None:
    make, stack, ends = CASES[name]
    run = Run(make)
    first = len(run.host.stacks[stack].blocks)
    run.train()
    before = seen(run.host)
    (seed,) = run.manager.deepen(stack)
    assert zeroed(seed.module) == ends
    run.manager.deepen(stack, 2, at="start", optimizer_state="copy")
    assert_same_bits(seen(run.host), before)
    run.train()
    assert all(bool(p.any()) for n, p in seed.module.named_parameters() if n in ends)
    before = seen(run.host)
    run.manager.deepen(stack, at="end")  # behind one that was inserted and has learned
    assert_same_bits(seen(run.host), before)
    run.train()

    run.manager.save(tmp_path / "run")
    again = Run(make)
    again.manager = fxgraft.SeedManager.load(tmp_path / "run", again.host, again.optimizer, check_every=0)
    for one in (run, again):
        one.train()
    assert_same_bits(dict(again.host.state_dict()), dict(run.host.state_dict()))

    plain = fxgraft.unwrap(run.host)
    assert list(plain.state_dict()) == list(make(first + 4).state_dict())
    assert_same_bits(seen(plain), seen(run.host))
    target = make(first + 4)
    optimizer = torch.optim.AdamW(target.parameters(), 1e-2)
    fxgraft.transplant(run.host, target, optimizer=run.optimizer, target_optimizer=optimizer)
    run.train(2)
    for _ in range(2):
        train(target, optimizer)
    assert_same_bits(seen(target), seen(run.host))


REFUSED: dict[str, tuple[Any, tuple[Tensor, ...], str]] = {
    "norm at the end": (lambda: Encoder(2, norm_first=False), (X,), r"layer_norm in .*norm2, no sum"),
    "mask": (lambda: nested(), (X, PAD), "fast path for transformer encoders"),
}


def nested() -> nn.Module:
    model = Encoder(2)
    model.encoder = nn.TransformerEncoder(layer(norm_first=False), 2)
    return model


@pytest.mark.parametrize(("make", "args", "told"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_is_refused_by_name(make: Any, args: tuple[Tensor, ...], told: str) -> None:
    host = fxgraft.trace(make(), args)
    manager = fxgraft.SeedManager(host, check_every=0)
    with pytest.raises(SlotError, match=told):
        manager.deepen("encoder.layers")
    assert not host.structure.placements
    assert not manager.seeds


class OwnBlock(nn.Module):
    """A block of one's own, whose code has no graph, as it reads a value."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        new = self.down(torch.relu(self.up(self.norm(x))))
        if bool(new.sum() > 1e9):
            return x
        return getattr(self, self.way)(x, new)

    def plain(self, x: Tensor, new: Tensor) -> Tensor:
        return x + new

    def in_place(self, x: Tensor, new: Tensor) -> Tensor:
        x = x.clone()
        x += new
        return x

    def put(self, x: Tensor, new: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, :2] = new[:, :2]
        out[:, 2:] += new[:, 2:]
        return x + out

    def scaled(self, x: Tensor, new: Tensor) -> Tensor:
        return torch.add(x, new, alpha=2)

    def scaled_in_place(self, x: Tensor, new: Tensor) -> Tensor:
        x = x.clone()
        x += new
        return x.mul_(2)

    def part_in_place(self, x: Tensor, new: Tensor) -> Tensor:
        x = x + new
        x[:, 0] = 0.5
        return x

    def no_sum(self, x: Tensor, new: Tensor) -> Tensor:
        return new

    def constant(self, x: Tensor, new: Tensor) -> Tensor:
        new[:, 0] = 0.5
        return x + new

    def nothing(self, x: Tensor, new: Tensor) -> Tensor:
        return x

    def in_training(self, x: Tensor, new: Tensor) -> Tensor:
        return x + new if not self.training else x + new.exp()


class OwnLoop(nn.Module):
    """Blocks in code that has a graph, or has none."""

    def __init__(self, way: str, is_traced: bool, cls: type[nn.Module] = OwnBlock) -> None:
        super().__init__()
        self.is_traced = is_traced
        self.stem, self.blocks = nn.Linear(16, 16), nn.ModuleList(cls(way) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.is_traced or bool(x.sum() < 1e9):
                x = block(x)
        return x


@pytest.mark.parametrize("is_traced", [True, False])
@pytest.mark.parametrize("way", ["plain", "in_place", "put"])
def test_the_sums_of_a_block_without_a_graph_are_found_on_a_run(way: str, is_traced: bool) -> None:
    torch.manual_seed(0)
    host = fxgraft.trace(OwnLoop(way, is_traced), (X,))
    slots = list(host.slots)
    assert {"blocks.0", "" if not is_traced else "blocks.1"} <= set(host.opaque)
    assert {"blocks.0", "blocks.1"} <= set(slots)
    assert not [name for name in slots if name.endswith("_1")]  # one place for one value
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1), check_every=0)
    before = host(X)
    for _ in range(2):
        (seed,) = manager.deepen("blocks", at="end")
        assert {n for n, p in seed.module.named_parameters() if not p.any() and "norm" not in n} == {
            "down.weight",
            "down.bias",
        }
    assert_same_bits(host(X), before)
    assert type(fxgraft.unwrap(host)) is OwnLoop


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("scaled", "no sum of two"),
        ("scaled_in_place", "mul_ in .*, no sum"),
        ("part_in_place", "__setitem__ in .*, no sum"),
        ("no_sum", "linear in .*down, no sum"),
        ("constant", "__setitem__ in .* adds a constant"),
        ("nothing", "adds nothing in the example call"),
        ("in_training", "exp in .*, which is no layer with weights"),
    ],
)
def test_what_is_no_sum_of_branches_in_a_run_is_refused(way: str, told: str) -> None:
    host = fxgraft.trace(OwnLoop(way, is_traced=False), (X,))
    manager = fxgraft.SeedManager(host, check_every=0)
    with pytest.raises(SlotError, match=told):
        manager.deepen("blocks")
    assert not host.structure.placements


class Routed(nn.Module):
    """Experts, of which each row goes to one."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.route = nn.Linear(16, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.route(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == i)
            if rows.numel():
                out.index_add_(0, rows, share[rows, None] * expert(x[rows]))
        return x + out


def test_experts_that_rows_are_sent_to_are_zeroed_if_the_example_shows_them_all() -> None:
    torch.manual_seed(0)
    rows = torch.randn(40, 16)
    host = fxgraft.trace(OwnLoop("", True, Routed), (rows,))
    before = host(rows)
    (seed,) = fxgraft.SeedManager(host, check_every=0).deepen("blocks")
    assert {n for n, p in seed.module.named_parameters() if not p.any()} == {
        f"experts.{i}.2.{name}" for i in range(3) for name in ("weight", "bias")
    }
    assert_same_bits(host(rows), before)
    host = fxgraft.trace(OwnLoop("", True, Routed), (rows[:1],))
    with pytest.raises(SlotError, match=r"experts\.\d\.\d\.weight was not used in the example call"):
        fxgraft.SeedManager(host, check_every=0).deepen("blocks")
