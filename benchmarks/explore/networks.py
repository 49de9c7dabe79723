"""Hosts whose places differ on purpose, the data that they learn, and what may grow in them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.worth.data import fashion
from fxgraft.commands import SEED

Batches = tuple[Tensor, Tensor]


class Perceptron(nn.Module):
    """A bottleneck of 3 units, a layer most of whose units are dead, a wide layer with room to spare."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.squeeze, self.widen = nn.Linear(64, 32), nn.Linear(32, 3), nn.Linear(3, 32)
        self.dead, self.roomy, self.head = nn.Linear(32, 32), nn.Linear(32, 128), nn.Linear(128, 10)
        nn.init.constant_(self.dead.bias[:24].data, -4.0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x.flatten(1)))
        x = self.widen(torch.relu(self.squeeze(x)))
        x = torch.relu(self.dead(torch.relu(x)))
        return self.head(torch.relu(self.roomy(x)))


class Convolutions(nn.Module):
    """Few channels in the middle, a layer most of whose channels are dead, a wide one."""

    def __init__(self, narrow: int = 2, dead: int = 6) -> None:
        super().__init__()
        self.enter, self.narrow = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, narrow, 3, padding=1)
        self.widen, self.dead = nn.Conv2d(narrow, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.roomy, self.head = nn.Conv2d(8, 32, 3, stride=2, padding=1), nn.Linear(128, 10)
        nn.init.constant_(self.dead.bias[:dead].data, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        x = self.widen(torch.relu(self.narrow(x)))
        x = torch.relu(self.dead(torch.relu(x)))
        x = torch.relu(self.roomy(x))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Block(nn.Module):
    """A block of a decoder; its MLP has ``hidden`` units."""

    def __init__(self, size: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, hidden), nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.ln1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class Decoder(nn.Module):
    """A character GPT of three blocks: the MLP of the second has 2 units."""

    def __init__(self, characters: int = 128, size: int = 32, length: int = 48):
        super().__init__()
        self.token, self.place = nn.Embedding(characters, size), nn.Embedding(length, size)
        self.blocks = nn.ModuleList(Block(size, 2, hidden) for hidden in (64, 2, 128))
        self.ln, self.head = nn.LayerNorm(size), nn.Linear(size, characters)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x) + self.place(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


@dataclass(frozen=True)
class Workload:
    """A host, its data, and what may grow.

    Attributes:
        make: makes the host.
        batch: (generator, size) -> inputs and targets of a batch to train on.
        held_out: batches that are never trained on.
        loss: of outputs and targets.
        candidates: what may grow.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[torch.Generator, int], Batches]
    held_out: Callable[[], list[Batches]]
    loss: Callable[[Tensor, Tensor], Tensor]
    candidates: tuple[SEED, ...]


@cache
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(images, dtype=torch.float32)[order].reshape(-1, 1, 8, 8) / 16
    return pixels, torch.tensor(labels, dtype=torch.int64)[order]


def digits_batch(generator: torch.Generator, size: int) -> Batches:
    x, y = digits()
    at = torch.randint(0, 1200, (size,), generator=generator)
    return x[at], y[at]


def digits_held_out() -> list[Batches]:
    x, y = digits()
    return list(zip(x[1200:].split(100), y[1200:].split(100), strict=True))


@cache
def fashion_half() -> dict[str, Batches]:
    """Fashion-MNIST at half its size, 14 x 14; the last 5,000 training images are held out."""
    data = fashion()
    return {
        part: (F.avg_pool2d(images.float() / 255, 2), labels)
        for part, (images, labels) in (("train", data.train), ("validation", data.validation))
    }


def fashion_batch(generator: torch.Generator, size: int) -> Batches:
    images, labels = fashion_half()["train"]
    at = torch.randint(0, len(images), (size,), generator=generator)
    return images[at], labels[at]


def fashion_held_out() -> list[Batches]:
    images, labels = fashion_half()["validation"]
    return list(zip(images.split(500), labels.split(500), strict=True))


@cache
def text() -> Tensor:
    """The sources of sympy, which come with torch, as characters below 128; 8 MB at most."""
    import sympy

    files = sorted(pathlib.Path(sympy.__file__).parent.rglob("*.py"))
    read = b"\n".join(file.read_bytes() for file in files[::7])[: 8 << 20]
    return torch.tensor([byte if byte < 128 else 63 for byte in read], dtype=torch.uint8)


def text_batch(generator: torch.Generator, size: int, first: float = 0.0, length: int = 48) -> Batches:
    characters = text()
    low = int(len(characters) * first)
    high = len(characters) if first else int(len(characters) * 0.9)
    at = torch.randint(low, high - length - 1, (size,), generator=generator)
    rows = torch.stack([characters[i : i + length + 1] for i in at.tolist()]).long()
    return rows[:, :-1], rows[:, 1:]


def text_held_out() -> list[Batches]:
    generator = torch.Generator().manual_seed(0)
    return [text_batch(generator, 32, first=0.9) for _ in range(8)]


def _seed(slot: str, blueprint: str, source: str | None = None, config: dict[str, int] | None = None) -> SEED:
    return SEED(slot=slot, blueprint=blueprint, source=source, config=config or {})


def _seeds(*rows: tuple[Any, ...]) -> tuple[SEED, ...]:
    return tuple(_seed(*row) for row in rows)


CONVOLUTIONAL = _seeds(
    ("relu", "conv_bottleneck"),
    ("relu", "scale_shift"),
    ("relu", "low_rank"),
    ("narrow", "conv_bottleneck"),
    ("relu_1", "net2net"),
    ("widen", "conv_bottleneck", "relu"),  # around the two channels
    ("widen", "low_rank", "relu"),
    ("widen", "squeeze_excite"),
    ("dead", "conv_bottleneck"),
    ("dead", "scale_shift"),
    ("dead", "low_rank"),
    ("relu_3", "conv_depthwise"),
    ("roomy", "low_rank"),
    ("roomy", "norm"),
    ("roomy", "conv_bottleneck"),
    ("head", "mlp", None, {"hidden": 16}),
)

WORKLOADS = {
    "MLP": Workload(
        Perceptron,
        digits_batch,
        digits_held_out,
        F.cross_entropy,
        _seeds(
            ("enter", "low_rank"),
            ("relu", "mlp", None, {"hidden": 16}),
            ("relu", "scale_shift"),
            ("squeeze", "mlp", None, {"hidden": 16}),
            ("relu_1", "net2net"),
            ("widen", "low_rank", "relu"),  # around the bottleneck
            ("widen", "mlp", "relu", {"hidden": 8}),
            ("widen", "norm"),
            ("widen", "mlp", None, {"hidden": 16}),
            ("dead", "scale_shift"),
            ("dead", "low_rank"),
            ("dead", "mlp", None, {"hidden": 16}),
            ("relu_3", "net2net"),
            ("roomy", "low_rank"),
            ("roomy", "mlp", None, {"hidden": 16}),
            ("relu_4", "scale_shift"),
            ("relu_4", "norm"),
            ("head", "low_rank"),
        ),
    ),
    "CNN": Workload(
        Convolutions,
        digits_batch,
        digits_held_out,
        F.cross_entropy,
        CONVOLUTIONAL,
    ),
    "Fashion": Workload(
        lambda: Convolutions(narrow=3, dead=5),  # with fewer some random seeds learn nothing at all
        fashion_batch,
        fashion_held_out,
        F.cross_entropy,
        CONVOLUTIONAL,
    ),
    "GPT": Workload(
        Decoder,
        text_batch,
        text_held_out,
        lambda out, target: F.cross_entropy(out.flatten(0, 1), target.flatten()),
        _seeds(
            *(
                (f"blocks.{i}.{where}", blueprint, None, config)
                for i in range(3)
                for where, blueprint, config in (
                    ("down", "mlp", {"hidden": 32}),
                    ("down", "low_rank", {}),
                    ("out", "attention", {}),
                    ("ln2", "scale_shift", {}),
                )
            ),
            ("ln", "mlp", None, {"hidden": 32}),
            ("ln", "low_rank"),
        ),
    ),
}
