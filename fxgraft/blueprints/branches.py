"""Branches: modules whose output is added to the host's value, zero at birth.

Zero at birth, so that blending one in changes nothing that was not learnt; and only by a last
*linear* layer of zeros, whose own weights have a gradient at once. (Zeros in front of a ReLU, or in
two layers in a row, would be zero for ever.)
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fxgraft_passes import Slot
from fxgraft_passes.errors import BlueprintError


def conv_bottleneck(slot: Slot, *, reduction: int = 4) -> nn.Module:
    """1x1 convolution to ``C / reduction`` channels, 3x3, 1x1 back to ``C`` (He et al., 2016, fig. 5).

    Accepts ``(N, C, H, W)``. With ``B = max(C // reduction, 4)``: ``2 C B + 9 B^2 + 2 B + C``
    parameters and about ``N H W`` times as many multiply-adds.

    Args:
        slot: where it goes.
        reduction: by how much the channels are reduced in the middle.
    """
    channels = _channels(slot, "conv_bottleneck")
    inner = max(channels // _positive("reduction", reduction), 4)
    reduce = nn.Conv2d(channels, inner, 1)
    spatial = nn.Conv2d(inner, inner, 3, padding=1)
    expand = nn.Conv2d(inner, channels, 1)
    for conv in (reduce, spatial):
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        _zero_bias(conv)
    _zero(expand)
    layers = [("reduce", reduce), ("act1", nn.ReLU()), ("spatial", spatial), ("act2", nn.ReLU())]
    return nn.Sequential(OrderedDict[str, nn.Module]([*layers, ("expand", expand)]))


def mlp(slot: Slot, *, hidden: int | None = None) -> nn.Module:
    """Linear to ``hidden``, GELU, linear back, over the last dimension ``D`` (Vaswani et al., 2017).

    Accepts ``(..., D)``. ``2 D hidden + hidden + D`` parameters.

    Args:
        slot: where it goes.
        hidden: the width between; ``D`` by default.
    """
    features = _features(slot, "mlp")
    width = _positive("hidden", features if hidden is None else hidden)
    up, down = nn.Linear(features, width), nn.Linear(width, features)
    nn.init.kaiming_normal_(up.weight, nonlinearity="relu")
    _zero_bias(up)
    _zero(down)
    return nn.Sequential(OrderedDict[str, nn.Module](up=up, act=nn.GELU(), down=down))


def low_rank(slot: Slot, *, rank: int = 4) -> nn.Module:
    """``B A x`` with ``A`` of He's uniform initialisation and ``B`` zero (LoRA; Hu et al., 2022).

    Accepts ``(N, C, H, W)``, where it acts on the channels as two 1x1 convolutions, and ``(..., D)``
    otherwise. ``2 rank D`` parameters, no bias.

    Args:
        slot: where it goes.
        rank: of the map; at most the number of features is useful.
    """
    rank = _positive("rank", rank)
    down: nn.Conv2d | nn.Linear
    up: nn.Conv2d | nn.Linear
    if len(slot.shape) == 4:
        channels = slot.shape[1]
        down = nn.Conv2d(channels, rank, 1, bias=False)
        up = nn.Conv2d(rank, channels, 1, bias=False)
    else:
        features = _features(slot, "low_rank")
        down = nn.Linear(features, rank, bias=False)
        up = nn.Linear(rank, features, bias=False)
    nn.init.kaiming_uniform_(down.weight, a=5**0.5)
    nn.init.zeros_(up.weight)
    return nn.Sequential(OrderedDict[str, nn.Module](down=down, up=up))


def _channels(slot: Slot, name: str) -> int:
    if len(slot.shape) != 4:
        raise BlueprintError(
            f"{name} at slot {slot.name!r}: expected a value (N, C, H, W); got {tuple(slot.shape)}"
        )
    return slot.shape[1]


def _features(slot: Slot, name: str) -> int:
    if len(slot.shape) < 2:
        raise BlueprintError(
            f"{name} at slot {slot.name!r}: expected a value (..., D); got {tuple(slot.shape)}"
        )
    return slot.shape[-1]


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise BlueprintError(f"{name}: expected a positive whole number; got {value!r}")
    return value


def _zero(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    _zero_bias(layer)


def _zero_bias(layer: nn.Conv2d | nn.Linear) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
