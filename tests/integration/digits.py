"""A small host on scikit-learn's digits, and what a training run of it leaves to see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft.commands import SEED
from tests.side_by_side import Pace

BATCH = 64
CANDIDATES = (
    SEED(slot="act", blueprint="mlp", config={"hidden": 32}),
    SEED(slot="head", blueprint="low_rank"),
)
PACE = Pace()
"""Fast: a whole life of a seed in some thirty steps."""


@dataclass(frozen=True)
class Digits:
    images: Tensor
    labels: Tensor
    held_out: tuple[Tensor, Tensor]

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, shuffled by its number."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(epoch))
        for now in order.split(BATCH):
            yield self.images[now], self.labels[now]

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        return [self.held_out]


def split(bunch: Any) -> Digits:
    images = torch.tensor(bunch.data, dtype=torch.float32) / 16
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))
    train, held_out = order[:1280], order[1280:]
    return Digits(images[train], labels[train], (images[held_out], labels[held_out]))


class SmallNet(nn.Module):
    """64 -> 6 -> 10, with dropout: it is too small for its task, and it draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 6)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.act(self.body(x))))


def fresh_model(seed: int = 0) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet()


def fresh_host(digits: Digits, seed: int = 0) -> fxgraft.Host:
    """A traced `fresh_model`, with the random streams where a run begins."""
    host = fxgraft.trace(fresh_model(seed), (digits.images[:BATCH],))
    torch.manual_seed(seed)
    return host


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), 1e-2)


def plain_losses(digits: Digits, epochs: int) -> list[float]:
    """A plain PyTorch loop, without anything of fxgraft."""
    model = fresh_model()
    torch.manual_seed(0)
    optimizer = adamw(model)
    losses = []
    for epoch in range(epochs):
        for images, labels in digits.batches(epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses
