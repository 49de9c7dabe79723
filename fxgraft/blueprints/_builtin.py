"""The blueprints that are built in: branches, and replacements.

The output of a branch is added to the host's value, zero at initialisation (see `initial` for how), so that
blending one in changes nothing that was not learnt. Where they read another slot's value (``source=``), that
may have another number of features, ``C'`` or ``D'``; formulas here are for as many as the slot's own. A
replacement takes the place of the host's value, and begins as the identity.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fxgraft.blueprints._shapes import channels, features, is_image, odd, positive
from fxgraft.blueprints.initial import he_normal, silent, zero_bias
from fxgraft_passes import Slot


def conv_bottleneck(slot: Slot, *, reduction: int = 4, init: str = "zero") -> nn.Module:
    """1x1 convolution to ``C / reduction`` channels, 3x3, 1x1 back to ``C`` (He et al., 2016, fig. 5).

    Accepts ``(N, C, H, W)``. With ``B = max(C // reduction, 4)``: ``2 C B + 9 B^2 + 2 B + C``
    parameters and ``2 N H W (2 C B + 9 B^2)`` FLOPs.

    Args:
        slot: where it goes.
        reduction: by how much the channels are reduced in the middle.
        init: how it begins as zero: ``"zero"``, zero weights in its last layer; or ``"rezero"``, a factor
            behind it that is learned and begins at 0 (one parameter more).
    """
    size = channels(slot, "conv_bottleneck")
    inner = max(size // positive("reduction", reduction), 4)
    reduce = nn.Conv2d(channels(slot.input, "conv_bottleneck"), inner, 1)
    spatial = nn.Conv2d(inner, inner, 3, padding=1)
    expand = nn.Conv2d(inner, size, 1)
    he_normal(reduce, spatial, expand)
    branch = _chain(reduce=reduce, act1=nn.ReLU(), spatial=spatial, act2=nn.ReLU(), expand=expand)
    return silent(branch, expand, init)


def conv_depthwise(slot: Slot, *, kernel: int = 3, init: str = "zero") -> nn.Module:
    """A ``kernel x kernel`` convolution of each channel, ReLU, a 1x1 convolution (Howard et al., 2017).

    Accepts ``(N, C, H, W)``. ``C kernel^2 + C^2 + 2 C`` parameters and
    ``2 N H W (C kernel^2 + C^2)`` FLOPs. Source: MobileNets, arXiv:1704.04861, without its norms.

    Args:
        slot: where it goes.
        kernel: the width of the first convolution, odd.
        init: how it begins as zero: ``"zero"``, zero weights in its last layer; or ``"rezero"``, a factor
            behind it that is learned and begins at 0 (one parameter more).
    """
    size = channels(slot, "conv_depthwise")
    each = nn.Conv2d(size, size, odd("kernel", kernel), padding=kernel // 2, groups=size)
    mix = nn.Conv2d(size, size, 1)
    he_normal(each, mix)
    return silent(_chain(each=each, act=nn.ReLU(), mix=mix), mix, init)


def mlp(slot: Slot, *, hidden: int | None = None, init: str = "zero") -> nn.Module:
    """Linear to ``hidden``, GELU, linear back, over the last dimension ``D`` (Vaswani et al., 2017).

    Accepts ``(..., D)``. ``2 D hidden + hidden + D`` parameters and ``4 D hidden`` FLOPs for each
    position.

    Args:
        slot: where it goes.
        hidden: the number of features between the two linear layers; ``D`` by default.
        init: how it begins as zero: ``"zero"``, zero weights in its last layer; or ``"rezero"``, a factor
            behind it that is learned and begins at 0 (one parameter more).
    """
    size = features(slot, "mlp")
    between = positive("hidden", size if hidden is None else hidden)
    up, down = nn.Linear(features(slot.input, "mlp"), between), nn.Linear(between, size)
    he_normal(up, down)
    return silent(_chain(up=up, act=nn.GELU(), down=down), down, init)


def low_rank(slot: Slot, *, rank: int = 4) -> nn.Module:
    """``B A x`` with ``A`` of He's uniform initialisation and ``B`` zero (LoRA; Hu et al., 2022).

    Accepts ``(N, C, H, W)``, where it acts on the channels as two 1x1 convolutions, and ``(..., D)``
    otherwise. ``2 rank D`` parameters, no bias, and ``4 rank D`` FLOPs for each position. Linear:
    `fxgraft.fold` can merge it into the layer in front of it.

    Args:
        slot: where it goes.
        rank: of the map; at most the number of features is useful.
    """
    rank = positive("rank", rank)
    down: nn.Conv2d | nn.Linear
    up: nn.Conv2d | nn.Linear
    if is_image(slot):
        down = nn.Conv2d(channels(slot.input, "low_rank"), rank, 1, bias=False)
        up = nn.Conv2d(rank, channels(slot, "low_rank"), 1, bias=False)
    else:
        down = nn.Linear(features(slot.input, "low_rank"), rank, bias=False)
        up = nn.Linear(rank, features(slot, "low_rank"), bias=False)
    nn.init.kaiming_uniform_(down.weight, a=5**0.5)
    return silent(_chain(down=down, up=up), up, "zero")


def _chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


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
