"""Seed modules for tests: they fit every slot, and each does one thing that could go wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """``w x + b``, on any shape."""

    def __init__(self, weight: float = 0.5, bias: float = 0.25):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + self.bias


class Drawing(nn.Module):
    """Draws at birth, and has dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(()))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.weight * x)


class Counting(nn.Module):
    """Has a buffer of its own that each training call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.scale(x)


class Poison(nn.Module):
    """Returns -0.0, inf or NaN everywhere, with a gradient to its weight."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value) * self.weight


class Still(nn.Module):
    """No parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


FITTING = {
    "scale": lambda slot: Scale(),
    "drawing": lambda slot: Drawing(),
    "counting": lambda slot: Counting(),
    "negative zero": lambda slot: Poison(-0.0),
    "inf": lambda slot: Poison(float("inf")),
    "nan": lambda slot: Poison(float("nan")),
    "still": lambda slot: Still(),
}
"""Blueprints that every slot accepts."""
