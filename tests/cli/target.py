"""A model for the command line."""

from __future__ import annotations

import torch
from torch import nn


def small() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(3, 6),)
