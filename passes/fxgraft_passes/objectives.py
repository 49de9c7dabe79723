"""What an isolated seed learns from: the gradient that it is given in place of the host's.

A seed in isolation does not change the loss, so the loss gives it no gradient. The objective makes
one from ``g``, the loss gradient at the slot's output. With ``d`` the branch (``f`` of a residual
graft, ``s - h`` of a convex one) the seed's parameters then receive the VJP of ``d`` at that gradient.

==================  ============================================================================
``trust``           ``g`` while the branch is small; outside a radius ``r = |d| / (rho |h|) > 1``
                    the outward part of ``g`` is dropped and a pull back is added:
                    ``g - min(0, <g,d>)/|d|^2 d + |g| min(r-1, 1) d/|d|``
``trust_step``      ``g + (|g| / (rho |h|)) d`` whose fixed point is the normalised functional
                    gradient step ``d = -rho |h| g/|g|``. It overshoots
                    where lr/rho is large, and then diverges; for comparison only.
``straight_through``  ``g`` for ever: a linear objective without a minimum. Unbounded; for comparison only.
``shadow``          nothing here: the seed learns in a second pass, at alpha 1 (``SeedManager.shadow``)
==================  ============================================================================

All norms are Frobenius norms over the whole value. Everything is a tensor operation, so nothing
here synchronises with a device or specialises a compiled graph; only where numbers can be looked at for
nothing (eager, on a CPU) ``trust`` leaves out what would not count, and has the bits of compiled code.
All forms are homogeneous in ``g`` and therefore free of the loss scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fxgraft_passes.devices import is_free_to_look_at

OBJECTIVES = ("trust", "trust_step", "straight_through", "shadow")
DEFAULT_RADIUS = 0.03
"""By experiment (``benchmarks/objectives.py``): at 0.1 the loss at alpha 1 went past 1.5 times that at 0."""


@dataclass(frozen=True)
class Objective:
    """What an isolated seed learns from.

    Attributes:
        name: one of `OBJECTIVES`. Default ``"trust"``.
        radius: rho, the largest size of the branch relative to the host's value; for the trust objectives.
            Default 0.03.

    Raises:
        ValueError: there is no such objective, or the radius is not above 0.
    """

    name: str = "trust"
    radius: float = DEFAULT_RADIUS

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}; got {self.name!r}")
        if not self.radius > 0:
            raise ValueError(f"radius: expected a positive number; got {self.radius!r}")


def seed_gradient(objective: str, radius: float, g: Tensor, h: Tensor, d: Tensor) -> Tensor:
    """The gradient at the seed's branch; shape and dtype of ``g``.

    Args:
        objective: one of `OBJECTIVES`.
        radius: rho, the trusted size of the branch relative to the host's value.
        g: the loss gradient at the slot's output.
        h: the host's value, detached.
        d: the seed's branch, detached.
    """
    if objective == "straight_through":
        return g
    if objective == "trust":
        return _projected(radius, g, h, d)
    if objective == "trust_step":
        pull = _norm(g) / _positive(radius * _norm(h))
        return torch.where(_norm(h) > 0, g + (pull * _wide(d)).to(g.dtype), g)
    return torch.zeros_like(g)


def _projected(radius: float, g: Tensor, h: Tensor, d: Tensor) -> Tensor:
    size = _norm(d)
    excess = size / _positive(radius * _norm(h)) - 1
    is_known = is_free_to_look_at(excess)
    if is_known and not excess.item() > 0:  # within the radius, or not a number
        return g
    # One formula for eager mode and compiled code: another order of operations has other bits.
    direction = _wide(d) / _positive(size)
    outward = (_wide(g) * direction).sum().clamp(max=0)
    pull = _norm(g) * excess.clamp(max=1) - outward
    moved = g + (pull * direction).to(g.dtype)
    return moved if is_known else torch.where(excess > 0, moved, g)


def _norm(x: Tensor) -> Tensor:
    """Half precision overflows at 65504, so norms are taken in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return cast(Tensor, torch.linalg.vector_norm(x, dtype=wide))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)
