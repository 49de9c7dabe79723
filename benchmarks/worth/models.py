"""The networks: each a container ``blocks`` of alike blocks, of any depth, between other layers.

`MLP` has none: it grows in width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

HEADS = 4


class Attention(nn.Module):
    """Causal attention of `HEADS` heads; (N, T, width) to the same."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        split = self.qkv(x).view(n, t, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = split.unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(n, t, width))


class GPTBlock(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and added to what came in."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))

    def outputs(self) -> list[nn.Module]:
        """The layers whose zeros make this block the identity."""
        return [self.attention.out, self.down]


class GPT(nn.Module):
    """(N, T) codes to (N, T, vocabulary) logits."""

    def __init__(self, depth: int, *, vocabulary: int, context: int, width: int = 64, hidden: int = 256):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(GPTBlock(width, hidden) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.tokens(codes) + self.positions.weight[: codes.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class CNNBlock(nn.Module):
    """Two convolutions with BatchNorm, added to what came in."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.conv2, self.norm2 = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(functional.relu(x))))
        return x + self.norm2(self.conv2(inner))

    def outputs(self) -> list[nn.Module]:
        """The layers whose zeros make this block the identity."""
        return [self.norm2]


class ThinBlock(nn.Module):
    """One convolution with BatchNorm, added to what came in: it sees one pixel further on each side."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(functional.relu(x)))

    def outputs(self) -> list[nn.Module]:
        """The layers whose zeros make this block the identity."""
        return [self.norm]


class CNN(nn.Module):
    """(N, 1, 28, 28) images to (N, 10) logits."""

    block: type[nn.Module] = CNNBlock

    def __init__(self, depth: int, *, channels: int = 16, patch: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, patch, stride=2, padding=patch // 2)
        self.blocks = nn.ModuleList(self.block(channels) for _ in range(depth))
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(functional.relu(x).mean((2, 3)))


class ThinCNN(CNN):
    """The same with blocks of one convolution and a smaller stem: one block sees little of an image."""

    block = ThinBlock

    def __init__(self, depth: int, *, channels: int = 16):
        super().__init__(depth, channels=channels, patch=3)


class MLP(nn.Module):
    """(N, 1, 28, 28) images to (N, 10) logits: two hidden layers, whose width its "depth" stands for."""

    unit = 8
    hidden = ("first", "second")
    """The layers whose outputs are its hidden channels."""

    def __init__(self, depth: int):
        super().__init__()
        width = self.unit * depth
        self.first, self.second = nn.Linear(28 * 28, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.first(images.flatten(1)))
        return self.head(functional.relu(self.second(x)))


def set_outputs_zero(block: nn.Module) -> None:
    """Make a block the identity; it learns from its first step on, its output layers first."""
    with torch.no_grad():
        for layer in block.outputs():
            for parameter in layer.parameters(recurse=False):
                parameter.zero_()
