"""Branches that look at the whole of a value: attention over positions, and over channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxgraft.blueprints._shapes import channels, is_image, positive, shape_error
from fxgraft.blueprints.initial import he_normal, silent, zero_bias
from fxgraft.errors import BlueprintError
from fxgraft_passes import Slot


class SelfAttention(nn.Module):
    """Multi-head attention of the positions of one value to each other.

    Attributes:
        qkv: ``D -> 3 D``.
        out: ``D -> D``.
        heads: how many; divides ``D``.
        causal: whether a position sees itself and earlier ones only.
        image: whether the value is ``(N, D, H, W)`` rather than ``(N, L, D)``.
    """

    def __init__(self, size: int, heads: int, causal: bool, image: bool):
        super().__init__()
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.heads = heads
        self.causal = causal
        self.image = image

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype as ``x``."""
        tokens = x.flatten(2).transpose(1, 2) if self.image else x
        parts = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=self.causal)
        out = self.out(mixed.transpose(1, 2).flatten(2))
        return out.transpose(1, 2).reshape_as(x) if self.image else out  # type: ignore[no-any-return]


def attention(
    slot: Slot, *, heads: int | None = None, causal: bool | None = None, init: str = "zero"
) -> nn.Module:
    """Multi-head self-attention with an output projection (Vaswani et al., 2017, arXiv:1706.03762).

    Accepts ``(N, L, D)``, and ``(N, D, H, W)``, where the positions are the pixels (non-local block;
    Wang et al., 2018, arXiv:1711.07971). ``4 D^2 + 4 D`` parameters; with ``L`` positions
    ``N (8 L D^2 + 4 L^2 D)`` FLOPs. It sees no padding mask of the host's.

    Args:
        slot: where it goes.
        heads: divides ``D``; by default as many as leave each 16 features or more, at most 8.
        causal: whether a position sees itself and earlier ones only. By default it is for
            ``(N, L, D)``, so that in a language model nothing looks ahead; pass False for an encoder.
        init: ``"zero"`` or ``"rezero"`` (one parameter more).
    """
    image = is_image(slot)
    if not image and len(slot.shape) != 3:
        raise shape_error(slot, "attention", "(N, L, D) or (N, D, H, W)")
    size = slot.shape[1 if image else -1]
    heads = _heads(size) if heads is None else positive("heads", heads)
    if size % heads:
        raise BlueprintError(f"attention: expected heads that divide {size} features; got {heads}")
    module = SelfAttention(size, heads, not image if causal is None else causal, image)
    nn.init.xavier_uniform_(module.qkv.weight)
    zero_bias(module.qkv)
    nn.init.xavier_uniform_(module.out.weight)
    zero_bias(module.out)
    return silent(module, module.out, init)


def _heads(size: int) -> int:
    return max(heads for heads in (1, 2, 4, 8) if heads == 1 or (size % heads == 0 and size // heads >= 16))


class SqueezeExcite(nn.Module):
    """``x * tanh(excite(mean(x)) / 2)``: with what it is added to, ``x * 2 sigmoid(excite(mean(x)))``.

    Attributes:
        reduce, expand: 1x1 convolutions ``C -> C / reduction -> C``.
    """

    def __init__(self, size: int, inner: int):
        super().__init__()
        self.reduce = nn.Conv2d(size, inner, 1)
        self.expand = nn.Conv2d(inner, size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same; dtype as ``x``."""
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.tanh(self.expand(torch.relu(self.reduce(pooled))) / 2)


def squeeze_excite(slot: Slot, *, reduction: int = 4) -> nn.Module:
    """Scale each channel by a gate computed from the means of all (Hu et al., 2018, arXiv:1709.01507).

    The gate is ``2 sigmoid``, 1 at initialisation, where the source has ``sigmoid``: so it is a branch that
    is zero at initialisation. Accepts ``(N, C, H, W)``. With ``B = max(C // reduction, 4)``:
    ``2 C B + B + C`` parameters and ``4 N C B`` FLOPs.

    Args:
        slot: where it goes.
        reduction: by how much the channels are reduced in the middle.
    """
    size = channels(slot, "squeeze_excite")
    module = SqueezeExcite(size, max(size // positive("reduction", reduction), 4))
    he_normal(module.reduce)
    return silent(module, module.expand, "zero")
