"""Seeds written by hand, without fxgraft: the other side of what seeds cost.

What a seed does is written here once more, as somebody would who has no library: plain operations where
autograd gives the right gradients (blending), one autograd function where it does not (isolation).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxgraft_passes.objectives import DEFAULT_RADIUS as RADIUS


class IsolatedByHand(nn.Module):
    """The host's value as it is, while the seed learns by the trust objective."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, h: Tensor) -> Tensor:
        return _Trust.apply(h, self.module(h.detach()))  # type: ignore[no-any-return, no-untyped-call]


class BlendedByHand(nn.Module):
    """``h + alpha seed(h)``, the host's gradient past the seed."""

    alpha: Tensor

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.register_buffer("alpha", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.alpha * self.module(h.detach())  # type: ignore[no-any-return]


class ReplacedByHand(BlendedByHand):
    """``torch.lerp`` from the host's value to that of the seed; the host's gradient past the seed."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.lerp(h, self.module(h.detach()), self.alpha)


class _Trust(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, d: Tensor) -> Tensor:
        ctx.save_for_backward(h, d)
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        h, d = ctx.saved_tensors
        tiny = torch.finfo(h.dtype).tiny
        size = torch.linalg.vector_norm(d)
        excess = size / (RADIUS * torch.linalg.vector_norm(h)).clamp(min=tiny) - 1
        direction = d / size.clamp(min=tiny)
        outward = (g * direction).sum().clamp(max=0)
        pull = torch.linalg.vector_norm(g) * excess.clamp(max=1) - outward
        return g, torch.where(excess > 0, g + pull * direction, g)


BY_STAGE = {"isolated": IsolatedByHand, "blending": BlendedByHand, "convex blending": ReplacedByHand}


def graft(model: nn.Module, place: str, module: nn.Module, stage: str) -> nn.Module:
    """Put a seed behind the submodule ``place`` of ``model``, and behind those that stand there."""
    seed = BY_STAGE[stage](module)
    inner = model.get_submodule(place)
    if isinstance(inner, nn.Sequential):
        inner.append(seed)
    else:
        model.set_submodule(place, nn.Sequential(inner, seed))
    return seed
