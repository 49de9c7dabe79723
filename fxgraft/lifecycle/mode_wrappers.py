"""Wrappers that adapt a seed's module to a mode: a branch as a replacement, and the other way round."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AddedBranch(nn.Module):
    """``x + branch(x)``: a branch as a replacement of the host's value, the identity at initialisation."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype as ``x``."""
        return x + self.branch(x)  # type: ignore[no-any-return]


class Difference(nn.Module):
    """``module(x) - x``: a replacement as a branch, zero at first where the module begins as the identity."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype as ``x``."""
        return self.module(x) - x  # type: ignore[no-any-return]


class Gated(nn.Module):
    """``sigmoid(gate) * branch(x)``: a branch that learns how much of itself to give.

    Attributes:
        gate: the logit, 0-d and 0 at initialisation (half open).
    """

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype as ``branch(x)``."""
        return torch.sigmoid(self.gate) * self.branch(x)  # type: ignore[no-any-return]
