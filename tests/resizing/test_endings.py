"""Where the branches of a block end, in code as libraries write it: `init="zero"` keeps the function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor, nn

import fxgraft
from tests.harness import assert_same_bits


class StochasticDepth(nn.Module):
    """As torchvision's: it leaves out branches while it trains, and has no graph, as it takes two paths."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(0.5).div_(0.5)


class Dropped(nn.Module):
    """A branch that ends with a norm, and may be left out."""

    def __init__(self, norm: type[nn.Module]):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(4, 4, 3, padding=1, bias=False), StochasticDepth()
        self.norm = nn.GroupNorm(2, 4) if norm is nn.GroupNorm else norm(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.norm(self.conv(x)))


class Flat(nn.Module):
    """As OPT's: the sum is made in two dimensions, and gets its own again."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        return (x + self.down(self.up(x).relu())).view(shape)


def mixtral() -> nn.Module:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    return T.MixtralForCausalLM(T.MixtralConfig(**sizes, **heads, bos_token_id=0, eos_token_id=0))


class DroppedTwice(nn.Module):
    """As torchvision's Swin: one module leaves out both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.drop = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), StochasticDepth()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.first(x))
        return x + self.drop(self.second(x).reshape_as(x))


@torch.fx.wrap
def stochastic_depth(x: Tensor, training: bool) -> Tensor:
    """As torchvision's, which is one operation of a graph."""
    return x * torch.empty(x.shape[0], 1, 1).bernoulli_(0.5).div_(0.5) if training else x


stochastic_depth.__module__ = "torchvision.ops.stochastic_depth"


@torch.fx.wrap
def windows(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """As torchvision's attention in shifted windows: layers inside of one operation."""
    return torch.roll(nn.functional.linear(torch.relu(nn.functional.linear(x, weight)), out), 1, dims=1)


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return windows(x, self.inner.weight, self.out.weight)


class WrappedFunctions(nn.Module):
    """As torchvision's Swin block."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = Windows(), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + stochastic_depth(self.attention(x), self.training)
        return x + stochastic_depth(self.down(self.up(x).relu()), self.training)


class Attended(nn.Module):
    """A block with torch's attention, which is one operation for a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        for bias in (self.norm.bias, self.attention.in_proj_bias):
            nn.init.normal_(bias)  # torch begins with zeros

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


CASES: dict[str, tuple[Any, Any, dict[str, Any], str, set[str]]] = {
    "a batch norm": (
        lambda: nn.Sequential(nn.Sequential(Dropped(nn.BatchNorm2d), Dropped(nn.BatchNorm2d))),
        torch.randn(2, 4, 5, 5),
        {},
        "0",
        {"norm.weight", "norm.bias"},
    ),
    "a group norm": (
        lambda: nn.Sequential(nn.Sequential(Dropped(nn.GroupNorm), Dropped(nn.GroupNorm))),
        torch.randn(2, 4, 5, 5),
        {},
        "0",
        {"norm.weight", "norm.bias"},
    ),
    "an instance norm": (
        lambda: nn.Sequential(nn.Sequential(Dropped(nn.InstanceNorm2d), Dropped(nn.InstanceNorm2d))),
        torch.randn(2, 4, 5, 5),
        {},
        "0",
        {"norm.weight", "norm.bias"},
    ),
    "a sum under other sizes": (
        lambda: nn.Sequential(nn.Sequential(Flat(), Flat())),
        torch.randn(2, 3, 4),
        {},
        "0",
        {"down.weight", "down.bias"},
    ),
    "one that leaves out both branches": (
        lambda: nn.Sequential(nn.Sequential(DroppedTwice(), DroppedTwice())),
        torch.randn(2, 4, 5, 5),
        {},
        "0",
        {"first.weight", "first.bias", "second.weight", "second.bias"},
    ),
    "functions that are one operation": (
        lambda: nn.Sequential(nn.Sequential(WrappedFunctions(), WrappedFunctions())),
        torch.randn(2, 3, 8),
        {},
        "0",
        {"attention.out.weight", "down.weight", "down.bias"},
    ),
    "attention of torch": (
        lambda: nn.Sequential(nn.Sequential(Attended(), Attended())),
        torch.randn(2, 5, 16),
        {},
        "0",
        {"attention.out_proj.weight", "attention.out_proj.bias"},
    ),
    "experts in one product": (
        mixtral,
        torch.arange(8).reshape(2, 4),
        {"use_cache": False},
        "model.layers",
        {"self_attn.o_proj.weight", "mlp.experts.down_proj"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_zeroed_block_keeps_the_function(name: str) -> None:
    make, batch, call, stack, zeroed = CASES[name]
    torch.manual_seed(0)
    model = make()
    host = fxgraft.trace(model, (batch,), call)

    def outputs() -> Tensor:
        with torch.no_grad():
            out = host.eval()(batch, **call)
        return getattr(out, "logits", out)

    before = outputs()
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), lr=0.1), check_every=0)
    (seed,) = manager.deepen(stack, at="end")
    assert_same_bits(outputs(), before)
    assert {n for n, p in seed.module.named_parameters() if not p.any()} == zeroed
    out = host.eval()(batch, **call)  # in train mode branches may be left out
    getattr(out, "logits", out).square().mean().backward()
    learns = {n for n, p in seed.module.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert learns & zeroed == zeroed
