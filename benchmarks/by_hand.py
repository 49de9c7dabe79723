"""The networks of ``benchmarks.perf_comparison``, and the same networks with their seeds written by hand.

What a seed does is written here once more, as somebody would who has no library: plain operations where
autograd gives the right gradients (blending), one autograd function where it does not (isolation).
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft_passes.objectives import DEFAULT_RADIUS as RADIUS


class MlpBlock(nn.Module):
    """``x + down(relu(up(x)))``; seeds stand behind the ReLU."""

    def __init__(self, width: int):
        super().__init__()
        self.up, self.relu, self.down = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        self.seeds: list[Callable[[Tensor], Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.up(x))
        for seed in self.seeds:
            h = seed(h)
        return x + self.down(h)


class ConvBlock(nn.Module):
    """``x + conv2(relu(conv1(x)))``; seeds stand behind the ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.seeds: list[Callable[[Tensor], Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.conv1(x))
        for seed in self.seeds:
            h = seed(h)
        return x + self.conv2(h)


def mlp_12() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 192), *(MlpBlock(192) for _ in range(12)), nn.Linear(192, 10)
    )


def small_cnn() -> nn.Module:
    blocks = (ConvBlock(16) for _ in range(4))
    head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *blocks, *head)


class IsolatedByHand(nn.Module):
    """The host's value as it is, while the seed learns by the trust objective."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, h: Tensor) -> Tensor:
        return _Trust.apply(h, self.module(h.detach()))  # type: ignore[no-any-return, no-untyped-call]


class BlendedByHand(nn.Module):
    """``h + alpha seed(h)``, the host's gradient past the seed."""

    alpha: Tensor

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.register_buffer("alpha", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.alpha * self.module(h.detach())  # type: ignore[no-any-return]


class _Trust(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, d: Tensor) -> Tensor:
        ctx.save_for_backward(h, d)
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        h, d = ctx.saved_tensors
        tiny = torch.finfo(h.dtype).tiny
        size = torch.linalg.vector_norm(d)
        excess = size / (RADIUS * torch.linalg.vector_norm(h)).clamp(min=tiny) - 1
        direction = d / size.clamp(min=tiny)
        outward = (g * direction).sum().clamp(max=0)
        pull = torch.linalg.vector_norm(g) * excess.clamp(max=1) - outward
        return g, torch.where(excess > 0, g + pull * direction, g)


def graft(model: nn.Module, block: int, module: nn.Module, blending: bool) -> nn.Module:
    """Put a seed into the block number ``block`` of ``model``, by hand."""
    blocks = [child for child in model if hasattr(child, "seeds")]  # type: ignore[attr-defined]
    seed = BlendedByHand(module) if blending else IsolatedByHand(module)
    blocks[block].seeds = nn.ModuleList([*blocks[block].seeds, seed])
    return seed


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """``model`` through ``torch.compile``, over a code object of its own.

    Dynamo keeps what it compiles by code object and looks through all of it in every call: models that
    share one would pay for each other.
    """
    code = FunctionType(_enter.__code__.replace(), _enter.__globals__)
    entry = torch.compile(code, fullgraph=True)
    return lambda x: entry(model, x)


def _enter(model: nn.Module, x: Tensor) -> Any:
    return model(x)
