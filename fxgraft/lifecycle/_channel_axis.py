"""Which axis of a value has its channels, where a mode needs to know.

A value (N, C) or (N, L, C) has them last, one (N, C, H, W) second. One that comes from a convolution over
one or three dimensions has them second, too, so that its last axis is a place, of which there may be more
in the next call::

    Conv1d -> ReLU    (N, C, L): no alpha for each channel
    Linear -> ReLU    (N, L, C): alpha has C elements
"""

from __future__ import annotations

import torch.fx as fx
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fxgraft.errors import BlueprintError
from fxgraft.host.host import Host
from fxgraft_passes import Slot
from fxgraft_passes.observe import observation_of

_SECOND = (_ConvNd, _NormBase)
_FUNCTIONS = ("conv1d", "conv3d", "conv_transpose1d", "conv_transpose3d", "batch_norm", "instance_norm")


def refuse_unknown_channels(host: Host, slot: Slot, seed: str, mode: str) -> None:
    """Raise `BlueprintError` for an alpha for each channel where the channels are not known to be last."""
    if mode != "channelwise" or len(slot.shape) in (2, 4):
        return
    maker = _convolution(host.regions[slot.region].module, slot.node)
    if maker is not None:
        raise BlueprintError(
            f'seed {seed!r} at slot {slot.name!r}: mode="channelwise" takes values (N, C), (N, L, C) and '
            f"(N, C, H, W); this one, {tuple(slot.shape)}, comes from {maker}, whose channels are second. "
            f'Use mode="residual"'
        )


def _convolution(module: nn.Module, node: fx.Node) -> str | None:
    """What makes the value and has its channels second, through operations that keep its shape."""
    while True:
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            if isinstance(called, _SECOND):
                return type(called).__name__
        elif (name := getattr(node.target, "__name__", "")) in _FUNCTIONS:
            return str(name)
        before = [other for other in node.all_input_nodes if _shape(other) == _shape(node) is not None]
        if not before:
            return None
        node = before[0]


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    seen = observation_of(node)
    return tuple(seen.shape) if seen is not None and seen.kind == "Tensor" else None
