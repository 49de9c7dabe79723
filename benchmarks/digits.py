"""scikit-learn's digits in three parts: to train on, to decide by, and to judge by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

BATCH = 64
HELD_OUT = 400  # the size of the held-out and of the test part: equal, so that one compiled graph serves both


@dataclass(frozen=True)
class Part:
    """Images ``(N, 1, 8, 8)``, standardised by the training part, and their labels ``(N,)``."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Digits:
    """``held_out`` is for decisions during training; ``test`` is read once, for the final accuracy."""

    train: Part
    held_out: Part
    test: Part

    def batches(self, steps: int, random_seed: int) -> Iterator[Part]:
        """``steps`` training batches, the same for every arm that is given the same random seed."""
        generator = torch.Generator().manual_seed(1_000 + random_seed)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < BATCH:
                order = torch.randperm(len(self.train.labels), generator=generator)
            now, order = order[:BATCH], order[BATCH:]
            yield Part(self.train.images[now], self.train.labels[now])


def load(split: int = 1) -> Digits:
    """Read and split the data; the same ``split`` is the same in every run."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(split))
    test, held_out, train = order[:HELD_OUT], order[HELD_OUT : 2 * HELD_OUT], order[2 * HELD_OUT :]
    mean, deviation = images[train].mean(), images[train].std()
    images = (images - mean) / deviation
    parts = (Part(images[index], labels[index]) for index in (train, held_out, test))
    return Digits(*parts)
