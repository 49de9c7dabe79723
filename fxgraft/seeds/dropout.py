"""Dropout that draws from a stream of its own, in eager mode and in compiled graphs alike.

A compiled graph knows no generators. So a mask hashes a counter: a counter-based random number generator
(Salmon et al., 2011), with a 32 bit finaliser of the murmur family (its constants are those of the lowest
bias in Wellons' "hash-prospector"), written in tensor operations on int32, whose products wrap around.
"""

from __future__ import annotations

import math
import warnings
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class SeedDropout(nn.Module):
    """Dropout from a counter-based stream: the same masks in eager and compiled, and after a resume.

    Stands in for ``nn.Dropout`` (an element at a time), ``nn.Dropout1d``, ``2d`` and ``3d`` (a whole
    channel at a time) in a seed.

    Attributes:
        p: the probability of an element (or channel) to be zeroed; the rest is scaled by 1/(1-p).
        channels: whether whole channels are dropped: the mask has the first two dimensions only.
        key: int64, which stream; a tensor, so that compiled graphs do not specialise on it.
        draws: int64, how many masks were drawn.
    """

    key: Tensor
    draws: Tensor

    def __init__(self, p: float, channels: bool, key: int):
        super().__init__()
        self.p = p
        self.channels = channels
        self.register_buffer("key", torch.tensor(key, dtype=torch.int64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        """``input`` with its elements (or channels) zeroed or scaled; unchanged in eval mode."""
        if not self.training or self.p == 0:
            return input
        shape = input.shape
        if self.channels:
            shape = torch.Size([*shape[:2], *(1 for _ in shape[2:])])
        if not torch.compiler.is_compiling() and _torch.is_in_backward():
            warnings.warn(_OTHER_MASK, stacklevel=2)
        kept = words(shape, self.key, self.draws, input.device) >= _threshold(self.p)
        # Not in place: the partitioner of torch.compile recomputes the mask in the backward pass from
        # what `draws` is then, and would get another one.
        self.draws = self.draws + 1
        return input * kept * (1 / (1 - self.p) if self.p < 1 else 0.0)

    def in_one_operation(self, input: Tensor) -> Tensor:
        """What it is for dimensions: dropout. For who reads what operations do, and not what they compute."""
        return F.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, channels={self.channels}"


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
    """Replace the dropout modules in ``module`` by `SeedDropout`; return it (or its replacement)."""
    replacement = _replacement(module, key)
    if replacement is not None:
        return replacement
    replaced: dict[nn.Module, SeedDropout | None] = {}
    for path, child in list(module.named_modules(remove_duplicate=False)):
        if child not in replaced:
            replaced[child] = _replacement(child, key_of(key, path))
        if path and (new := replaced[child]) is not None:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, new)
    return module


def _replacement(module: nn.Module, key: int) -> SeedDropout | None:
    kind = type(module)  # subclasses may do something else
    if kind not in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
        return None
    return SeedDropout(cast(float, module.p), kind is not nn.Dropout, key).train(module.training)
