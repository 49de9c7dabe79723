"""Dropout that draws from a stream of its own, in eager mode and in compiled graphs alike.

A compiled graph knows no generators. So a mask hashes a counter: a counter-based random number generator
(Salmon et al., 2011), with a 32 bit finaliser of the murmur family (its constants are those of the lowest
bias in Wellons' "hash-prospector"), written in tensor operations on int32, whose products wrap around.
"""

from __future__ import annotations

import math
import warnings
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fxgraft import _torch
from fxgraft.seeds.streams import key_of

_OTHER_MASK = (
    "the dropout of a seed runs inside of a backward pass, for activation checkpointing as it seems: it "
    "draws another mask than in the forward, and the gradients belong to neither. Leave layers with such "
    "seeds out of checkpointing, or give the seed no dropout"
)
_31_BITS = 0x7FFFFFFF
_FIRST, _SECOND = 0x21F0AAAD, 0xD35A2D97 - 2**32  # odd
_STEP, _SPREAD = 0x9E3779B97F4A7C15 - 2**64, 0xD6E8FEB86659FD93 - 2**64
"""How far one draw is from the next in a stream's state, and what spreads a bit of it: odd, and large."""


_EXACT = (torch.float32, torch.float64)
"""Where a factor ``scale`` or 0 gives the bits of both products in a row. In eager mode that takes two
thirds of the time, as torch's dropout does; a compiler fuses the products, and keeps a mask of bytes."""


class PrivateDropout(_DropoutNd):
    """Dropout from a counter-based stream: the same masks in eager and compiled, and after a resume.

    Each class below stands in for one of torch's in a seed, and is one.

    Args:
        p: the probability of an element (or channel) to be zeroed; the rest is scaled by 1/(1-p).
        key: which stream.
        inplace: whether it writes into its input.

    Attributes:
        key: int64; a tensor, so that compiled graphs do not specialise on it.
        draws: int64, how many masks were drawn.
    """

    key: Tensor
    draws: Tensor
    plain: ClassVar[type[_DropoutNd]]

    def __init__(self, p: float, key: int, inplace: bool = False):
        super().__init__(p, inplace)
        self.register_buffer("key", torch.tensor(key, dtype=torch.int64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        """``input`` with its elements (or channels) zeroed or scaled; unchanged in eval mode."""
        if not self.training or self.p == 0:
            return input
        if not torch.compiler.is_compiling() and _torch.is_in_backward():
            warnings.warn(_OTHER_MASK, stacklevel=2)
        kept = words(self.mask_of(input.shape), self.key, self.draws, input.device) >= _threshold(self.p)
        # Not in place: the partitioner of torch.compile recomputes the mask in the backward pass from
        # what `draws` is then, and would get another one.
        self.draws = self.draws + 1
        scale = 1 / (1 - self.p) if self.p < 1 else 0.0
        if input.dtype in _EXACT and not torch.compiler.is_compiling():
            factor = kept.to(input.dtype).mul_(scale)
            return input.mul_(factor) if self.inplace else input * factor
        return input.mul_(kept).mul_(scale) if self.inplace else input * kept * scale

    def mask_of(self, shape: torch.Size) -> torch.Size:
        """The shape of a mask for a value of ``shape``."""
        return shape

    def in_one_operation(self, input: Tensor) -> Tensor:
        """The same as one operation of torch, for the analysis of dimensions: values do not matter."""
        return F.dropout(input, self.p, self.training)

    def like_torch(self) -> nn.Module:
        """The dropout of torch, which draws from the global stream, that it stands in for."""
        return self.plain(self.p, self.inplace).train(self.training)


class SeedDropout(PrivateDropout, nn.Dropout):
    """Stands in for ``nn.Dropout``: drops elements of a value of any shape."""

    plain = nn.Dropout


class _OfChannels(PrivateDropout):
    """Drops whole channels: the second dimension, or the first one of a value without a batch."""

    dims: ClassVar[int]

    def mask_of(self, shape: torch.Size) -> torch.Size:
        batched = 2 if len(shape) >= self.dims else 1
        return torch.Size([*shape[:batched], *(1 for _ in shape[batched:])])


class SeedDropout1d(_OfChannels, nn.Dropout1d):
    """Stands in for ``nn.Dropout1d``: of a value ``(N, C, L)`` or ``(C, L)``."""

    plain, dims = nn.Dropout1d, 3


class SeedDropout2d(_OfChannels, nn.Dropout2d):
    """Stands in for ``nn.Dropout2d``: of ``(N, C, H, W)``; torch takes ``(N, C, L)`` as well."""

    plain, dims = nn.Dropout2d, 3


class SeedDropout3d(_OfChannels, nn.Dropout3d):
    """Stands in for ``nn.Dropout3d``: of a value ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""

    plain, dims = nn.Dropout3d, 5


def _threshold(p: float) -> int:
    """Words are below it with probability ``p``; if that is 1, the one word that is not is scaled to 0."""
    return min(math.ceil(p * 2**32), 2**32 - 1) - 2**31


def words(shape: torch.Size, key: Tensor, draw: Tensor, device: torch.device) -> Tensor:
    """All int32 numbers, equally likely, as a function of ``key``, ``draw`` and position.

    Half of a stream's state goes in before the first round, and half before the second: two draws whose
    first halves are near would otherwise be the same words, shifted.
    """
    state = key + draw * _STEP
    state = (state ^ (state >> 29)) * _SPREAD
    first, second = state & _31_BITS, (state >> 32) & _31_BITS
    word = torch.arange(math.prod(shape), dtype=torch.int32, device=device) + first
    word ^= (word >> 16) & 0xFFFF  # the bits that come in from the left are those of the sign
    word *= _FIRST
    word ^= second
    word ^= (word >> 15) & 0x1FFFF
    word *= _SECOND
    word ^= (word >> 15) & 0x1FFFF
    return word.reshape(shape)


def privatize(module: nn.Module, key: int) -> nn.Module:
    """Replace the dropout modules in ``module`` by `PrivateDropout`; return it (or its replacement)."""
    replacement = _replacement(module, key)
    if replacement is not None:
        return replacement
    replaced: dict[nn.Module, PrivateDropout | None] = {}
    for path, child in list(module.named_modules(remove_duplicate=False)):
        if child not in replaced:
            replaced[child] = _replacement(child, key_of(key, path))
        if path and (new := replaced[child]) is not None:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, new)
    return module


STAND_INS: dict[type[nn.Module], type[PrivateDropout]] = {
    made.plain: made for made in (SeedDropout, SeedDropout1d, SeedDropout2d, SeedDropout3d)
}
"""The dropout of torch -> what stands in for it."""


def _replacement(module: nn.Module, key: int) -> PrivateDropout | None:
    made = STAND_INS.get(type(module))  # subclasses may do something else
    if made is None or not isinstance(module, _DropoutNd):
        return None
    return made(module.p, key, module.inplace).train(module.training)
