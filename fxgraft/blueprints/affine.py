"""Branches that scale and shift channels, with and without normalising them; zero at initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxgraft.blueprints._shapes import is_image, positive, width
from fxgraft.errors import BlueprintError
from fxgraft_passes import Slot


def norm(slot: Slot, *, groups: int = 1) -> nn.Module:
    """The normalised value, scaled and shifted; both begin at zero (Goyal et al., 2017, section 5.1).

    A group norm over ``(N, C, H, W)`` (Wu and He, 2018, arXiv:1803.08494), a layer norm over the last
    dimension of ``(..., D)`` (Ba et al., 2016, arXiv:1607.06450). Accepts both. ``2 D`` parameters;
    no matrix products, so no FLOPs as they are counted here.

    Args:
        slot: where it goes.
        groups: of the group norm; divides ``C``. 1 is a layer norm over channels and pixels.
    """
    size = width(slot, "norm")
    if size % positive("groups", groups) or (groups > 1 and not is_image(slot)):
        raise BlueprintError(
            f"norm at slot {slot.name!r}: expected groups that divide the channels of a value "
            f"(N, C, H, W), or 1; got {groups} for {tuple(slot.shape)}"
        )
    module = nn.GroupNorm(groups, size) if is_image(slot) else nn.LayerNorm(size)
    nn.init.zeros_(module.weight)
    return module


class ScaleShift(nn.Module):
    """``weight * x + bias``, for each channel.

    Attributes:
        weight, bias: ``(C, 1, 1)`` for a value ``(N, C, H, W)``, ``(D,)`` for another; 0 at initialisation.
    """

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype as ``x``."""
        return self.weight * x + self.bias


def scale_shift(slot: Slot) -> nn.Module:
    """Scale and shift each channel (SSF; Lian et al., 2022, arXiv:2210.08823).

    Accepts ``(N, C, H, W)`` and ``(..., D)``. ``2 D`` parameters; no matrix products. Linear:
    `fxgraft.fold` can merge it into the linear layer, the convolution or the norm in front of it.

    Args:
        slot: where it goes.
    """
    size = width(slot, "scale_shift")
    return ScaleShift(size, 1, 1) if is_image(slot) else ScaleShift(size)
