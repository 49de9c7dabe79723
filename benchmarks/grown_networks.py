"""Networks that grow, small and of an ordinary size, and the same networks by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

import fxgraft
from benchmarks.workloads import WORKLOADS, ConvBlock, MlpBlock, Workload


class HiddenBlock(MlpBlock):
    """``x + down(relu(up(x)))`` with hidden units of a number of its own."""

    def __init__(self, width: int, hidden: int):
        super().__init__(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)


def mlp(width: int, blocks: int, hidden: int) -> nn.Module:
    """The MLP of the other benchmarks, its blocks in a container of their own."""
    inner = nn.Sequential(*(HiddenBlock(width, hidden) for _ in range(blocks)))
    return nn.Sequential(nn.Linear(64, width), inner, nn.Linear(width, 10))


class HiddenConvBlock(ConvBlock):
    """A block of a ResNet with inner channels of a number of its own."""

    def __init__(self, channels: int, inner: int):
        super().__init__(channels)
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)


def resnet(channels: tuple[int, int], inner: tuple[int, int]) -> nn.Module:
    """The ResNet of the other benchmarks."""
    stages: list[nn.Module] = []
    for width, before, hidden in zip(channels, (3, channels[0]), inner, strict=True):
        stages += [nn.Conv2d(before, width, 3, 2, padding=1)]
        stages += [HiddenConvBlock(width, hidden) for _ in range(2)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[1], 10))


def gpt2(layers: int, **sizes: int) -> nn.Module:
    """GPT-2 of the other benchmarks, with other ``sizes`` in its config."""
    model = WORKLOADS["GPT-2"].make()
    config = type(model.config)(**{**model.config.to_dict(), **sizes, "n_layer": layers})  # type: ignore[union-attr, operator]
    return type(model)(config)


@dataclass(frozen=True)
class Grown:
    """A way to grow.

    Attributes:
        workload: with the model before it grows.
        blocks: of the grown model, which are compiled one by one by region.
        by_hand: makes the grown model.
        grow: what makes it of the other.
        stack: where further blocks go.
        group: channels that can grow.
    """

    workload: Workload
    blocks: tuple[str, ...]
    by_hand: Callable[[], nn.Module]
    grow: Callable[[fxgraft.SeedManager], object]
    stack: str = ""
    group: str = ""


def _gpt2(name: str, tokens: tuple[int, int], **sizes: int) -> Grown:
    def example() -> tuple[tuple[()], dict[str, torch.Tensor]]:
        return (), {"input_ids": torch.randint(256, tokens)}

    before = WORKLOADS["GPT-2"]
    return Grown(
        Workload(
            name, lambda: gpt2(3, **sizes), example, 256, before.blocks, before.places, before.blueprint
        ),
        tuple(f"transformer.h.{i}" for i in range(6)),
        lambda: gpt2(6, **sizes),
        lambda manager: manager.deepen("transformer.h", 3),
        "transformer.h",
        "transformer.h.0.mlp.c_fc",
    )


def _resnet(name: str, images: int, narrow: int, wide: int) -> Grown:
    channels = narrow, wide

    def grow(manager: fxgraft.SeedManager) -> None:
        with manager.together():
            for block, more in ((1, narrow), (2, narrow), (4, wide), (5, wide)):
                manager.widen(f"{block}.conv1", more)

    before = WORKLOADS["ResNet"]
    return Grown(
        Workload(
            name, lambda: resnet(channels, channels), lambda: ((torch.randn(images, 3, 32, 32),), {}), 10,
            before.blocks, before.places, before.blueprint,
        ),
        before.blocks,
        lambda: resnet(channels, (2 * narrow, 2 * wide)),
        grow,
        "",
        "1.conv1",
    )  # fmt: skip


def _mlp(name: str, rows: int, width: int) -> Grown:
    def grow(manager: fxgraft.SeedManager) -> None:
        with manager.together():
            new = manager.deepen("1", 6)
            for i in range(6):
                manager.widen(f"1.{i}.up", width // 2)
            for block in new:
                manager.widen(f"_seeds.{block.name}.module.up", width // 2)

    before = WORKLOADS["MLP-12"]
    return Grown(
        Workload(
            name, lambda: mlp(width, 6, width // 2), lambda: ((torch.randn(rows, 64),), {}), 10,
            ("1.0", "1.1"), before.places, before.blueprint,
        ),
        tuple(f"1.{i}" for i in range(12)),
        lambda: mlp(width, 12, width),
        grow,
        "1",
        "1.0.up",
    )  # fmt: skip


def _fused_mlp(name: str, rows: int, width: int) -> Grown:
    """Wider by a branch at each block, which is fused with the block's own layers."""

    def grow(manager: fxgraft.SeedManager) -> None:
        names = [f"branch_{i}" for i in range(6)]
        with manager.together():
            for i, seed in enumerate(names):
                manager.germinate(
                    f"1.{i}.down",
                    "parallel",
                    source=f"1.{i}@x",
                    name=seed,
                    isolated=False,
                    channels=width // 2,
                )
        manager.host(*manager.host.example_call()[0])  # a seed that never ran cannot be kept
        with manager.together():
            for seed in names:
                manager.blend(seed, steps=0)
                manager.fossilize(seed, force=True)
        manager.fuse()

    before = _mlp(name, rows, width)
    return replace(
        before,
        blocks=tuple(f"1.{i}" for i in range(6)),
        by_hand=lambda: mlp(width, 6, width),
        grow=grow,
    )


MLP = _mlp("MLP, deeper and wider", 64, 192)
SMALL = (
    _gpt2("GPT-2, deeper", (8, 32)),
    _resnet("ResNet, wider", 16, 16, 32),
    MLP,
    _fused_mlp("MLP, branches fused", 64, 192),
)
"""As small as the other benchmarks: a step of 4 to 27 ms."""

ORDINARY = (
    _gpt2("GPT-2 of 256, deeper", (8, 64), n_embd=256, n_head=8),
    _resnet("ResNet of 64, wider", 32, 64, 128),
    _mlp("MLP of 512, deeper and wider", 256, 512),
)
"""A step of some 100 ms, in which what Python takes is a small part."""
