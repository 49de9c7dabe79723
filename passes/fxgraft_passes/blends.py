"""The values of blends, and the autograd functions behind the operators where no plain operation would do.

Which gradient goes where is in the table of `fxgraft_passes.operators`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from fxgraft_passes._strides import alias, in_strides_of
from fxgraft_passes.devices import is_free_to_look_at
from fxgraft_passes.objectives import seed_gradient

FULL_PRECISION = (torch.float32, torch.float64)


def add(h: Tensor, f: Tensor, alpha: Tensor) -> Tensor:
    """``h + alpha f``; the bits of ``h`` at alpha 0, whatever ``f`` holds."""
    # An alpha for each channel is no scalar to type promotion: half precision values would widen.
    return torch.where(alpha == 0, h, (h + alpha * f).to(h.dtype))


def mix(h: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
    """``h + alpha (s - h)``; the bits of ``h`` at 0 and of ``s`` at 1, whatever the other holds."""
    return torch.where(alpha == 0, h, torch.where(alpha == 1, s, between(h, s, alpha)))


def between(h: Tensor, s: Tensor, alpha: Tensor | float) -> Tensor:
    """``h + alpha (s - h)``; in full precision one operation, whose bits are those of alpha as a number."""
    if h.dtype in FULL_PRECISION:
        return torch.lerp(h, s, alpha.to(h.dtype) if isinstance(alpha, Tensor) else alpha)
    return (h + alpha * (s - h)).to(h.dtype)


def gets_constants(value: Tensor) -> None:
    """Make the gradient that comes back to ``value`` a constant to further derivatives.

    It has a history, and no hooks. As ``register_hook``, in a third of the time: the handle is not needed.
    """
    value._backward_hooks = OrderedDict(_CONSTANT)  # of its own: hooks of others come to it
    value.grad_fn._register_hook_dict(value)  # type: ignore[union-attr]


def _constant(g: Tensor | None) -> Tensor | None:
    return g.detach() if g is not None and torch.is_grad_enabled() else None


_CONSTANT = {-1: _constant}


def _is_zero(alpha: Tensor) -> bool:
    """Whether alpha is 0 in all channels, where that can be looked at for nothing."""
    if alpha.dim() and torch.compiler.is_compiling():
        return False
    largest = alpha.amax() if alpha.dim() else alpha
    return is_free_to_look_at(largest) and not largest.item()


def _keeps_none(ctx: Any) -> None:
    """A gradient that is None stays None: zeros in its place would let weight decay move the host.

    The compiler does not know this setting, and has no need of it.
    """
    if not torch.compiler.is_compiling():
        ctx.set_materialize_grads(False)


class Isolated(torch.autograd.Function):
    """The host's value; what the seed gets is what its objective makes of the gradient."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, s: Tensor, mode: str, objective: str, radius: float, copy: bool
    ) -> Tensor:
        _keeps_none(ctx)
        ctx.options = (mode, objective, radius)
        ctx.save_for_backward(h, s)
        return h.clone(memory_format=torch.preserve_format) if copy else alias(h)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if g is None:
            return (None,) * 6
        h, s = ctx.saved_tensors
        to_seed = None if ctx.options[1] == "shadow" else _learn(ctx.options, g, h, s)
        return g, to_seed, None, None, None, None


class Blend(torch.autograd.Function):
    """Both blends: they differ in their value and in what the host's gradient is scaled by."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        s: Tensor,
        alpha: Tensor,
        learning: Tensor | None,
        options: tuple[str, str, float, bool],
    ) -> Tensor:
        _keeps_none(ctx)
        ctx.options = options
        # alpha may be filled with its next value before backward runs: keep this step's.
        alpha = alpha.clone()
        if learning is None:
            ctx.save_for_backward(alpha)
        else:
            ctx.save_for_backward(alpha, learning.clone(), h, s)
        ctx.seed_dtype = s.dtype
        s = s.to(h.dtype)
        value = mix(h, s, alpha) if options[0] == "convex" else add(h, s, alpha)
        return in_strides_of(h, value, _is_zero(alpha))

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if g is None:
            return (None,) * 5
        alpha, *learner = ctx.saved_tensors
        mode, objective, radius, isolated = ctx.options
        is_whole = mode != "convex" or _is_zero(alpha)  # the gradient itself: a product has other strides
        to_host = g if is_whole else ((1 - alpha) * g).to(g.dtype)
        (to_seed,) = _constants(g) if isolated else (g,)
        # In this order, as autograd has it: the other one rounds alpha to half precision first.
        to_seed = (to_seed * alpha).to(ctx.seed_dtype)
        if learner:
            learning, h, s = learner
            to_seed = torch.where(learning, _learn((mode, objective, radius), g, h, s), to_seed)
        return to_host, to_seed, None, None, None


class Release(torch.autograd.Function):
    """The host's value; its gradient comes back only where ``released`` was set."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, released: Tensor) -> Tensor:
        _keeps_none(ctx)
        ctx.save_for_backward(released.clone())
        return alias(h)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if g is None:
            return None, None
        (released,) = ctx.saved_tensors
        # x + -0.0 is x for every x, signed zeros included; x + 0.0 is not.
        return torch.where(released, g, torch.full_like(g, -0.0)), None


def _learn(options: tuple[str, str, float], g: Tensor, h: Tensor, s: Tensor) -> Tensor:
    mode, objective, radius = options
    g, h, s = _constants(g, h, s)
    branch = s.to(h.dtype)
    if mode == "convex":
        branch = branch - h
    return seed_gradient(objective, radius, g, h, branch).to(s.dtype)


def _constants(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors without their history, where it could be used: under ``create_graph=True``."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return tuple(tensor.detach() for tensor in tensors)
    return tensors
