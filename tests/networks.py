"""Small networks that several tests train."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NormNet(nn.Module):
    """Draws random numbers and writes into buffers: BatchNorm and dropout between two layers."""

    def __init__(self, inputs: int = 6, hidden: int = 4, outputs: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        self.first, self.norm, self.drop = (
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.first(x)))))


class ResidualMLP(nn.Module):
    """A block that is added to its input."""

    def __init__(self, features: int = 4, hidden: int = 8) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(features, hidden), nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.relu(self.wide(x)))


class TanhBetween(nn.Module):
    """The slot ``tanh`` between two layers: the gradient of ``before`` tells what reached the host."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.after = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.tanh(self.before(x)))
