"""The host of the demo, a convolutional network that is too small for its task, and what it may grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fxgraft import Slot

CHANNELS = 4


class Stage(nn.Module):
    """Convolution of stride 2, normalisation, ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, H/2, W/2)``."""
        return self.relu(self.norm(self.conv(x)))  # type: ignore[no-any-return]


class SmallNet(nn.Module):
    """Two stages behind a stem, global mean, linear: ``(N, 1, 8, 8)`` to ``(N, 10)``."""

    def __init__(self, channels: int = CHANNELS, classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.act = nn.ReLU()
        self.stage1 = Stage(channels)
        self.stage2 = Stage(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The class scores."""
        features = self.stage2(self.stage1(self.act(self.stem(x))))
        return self.head(features.mean((2, 3)))  # type: ignore[no-any-return]


def initial_weights(random_seed: int) -> dict[str, Tensor]:
    """The weights that every arm with this random seed begins with."""
    torch.manual_seed(random_seed)
    return SmallNet().state_dict()


def wide_conv(slot: Slot, *, factor: int = 4) -> nn.Module:
    """A 3x3 convolution to ``factor`` times the channels, ReLU, 1x1 back; zero at birth."""
    channels = slot.shape[1]
    widen = nn.Conv2d(channels, factor * channels, 3, padding=1)
    narrow = nn.Conv2d(factor * channels, channels, 1)
    nn.init.zeros_(narrow.weight)
    assert narrow.bias is not None
    nn.init.zeros_(narrow.bias)
    return nn.Sequential(widen, nn.ReLU(), narrow)


BLUEPRINTS: Mapping[str, str | Callable[..., nn.Module]] = {"wide_conv": wide_conv, "low_rank": "low_rank"}
"""What the controller may ask for: a factory of the demo's own, and a registered name."""

CANDIDATES = (("act", "wide_conv"), ("stage1", "wide_conv"), ("stage2", "wide_conv"), ("head", "low_rank"))
"""(slot, blueprint): where the controller looks for room to grow."""
