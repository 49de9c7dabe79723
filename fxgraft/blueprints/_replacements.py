"""Replacements: modules that take the place of the host's value, and begin as the identity."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fxgraft.blueprints._shapes import channels, features, is_image, odd
from fxgraft.blueprints.initial import zero_bias
from fxgraft_passes import Slot


def identity(slot: Slot) -> nn.Module:
    """The value itself: a seed that changes nothing, as a control. (``nn.Identity``)

    Accepts a value of any shape. No parameters, no FLOPs.

    Args:
        slot: where it goes.
    """
    return nn.Identity()


def net2net(slot: Slot, *, kernel: int = 3, relu: bool = False) -> nn.Module:
    """One more layer, which begins as the identity (Net2DeeperNet; Chen et al., 2016, arXiv:1511.05641).

    A convolution over ``(N, C, H, W)``, a linear layer over the last dimension of ``(..., D)``.
    Accepts both. ``C^2 kernel^2 + C`` parameters and ``2 N H W C^2 kernel^2`` FLOPs, or ``D^2 + D``
    and ``2 D^2`` for each position. Without ``relu`` it is linear, and `fxgraft.fold` can merge it
    where it is no wider than 1x1.

    Args:
        slot: where it goes.
        kernel: the width of the convolution, odd.
        relu: whether a ReLU follows. The identity at initialisation only where the value is never negative,
            so behind a ReLU of the host's, where the paper puts it.
    """
    layer: nn.Conv2d | nn.Linear
    if is_image(slot):
        size = channels(slot, "net2net")
        layer = nn.Conv2d(size, size, odd("kernel", kernel), padding=kernel // 2)
        nn.init.dirac_(layer.weight)
    else:
        size = features(slot, "net2net")
        layer = nn.Linear(size, size)
        nn.init.eye_(layer.weight)
    zero_bias(layer)
    return nn.Sequential(OrderedDict[str, nn.Module](layer=layer, act=nn.ReLU())) if relu else layer
