"""The operators that a graft puts into a graph: what leaves the slot, and where gradients go.

``h`` is the host's value, ``s`` the seed's output (``f`` where it is added), ``g`` the loss gradient
at the slot's output.

===============  ====================================  ======================  ==========================
operator         value                                 gradient of ``h``       gradient of the seed
===============  ====================================  ======================  ==========================
``isolated``     ``h``, the bits and (but for ``copy``)  ``g``, the same object  by the objective
                 the memory
``residual``     ``h + alpha f``                       ``g``                   ``alpha g`` (objective*)
``convex``       ``h + alpha (s - h)``                 ``(1 - alpha) g``       ``alpha g`` (objective*)
``release``      ``h`` (a seed's input)                0 until ``released``    --
===============  ====================================  ======================  ==========================

(*) while the 0-d flag ``learning`` is set, so that one compiled graph serves seeds in any stage;
``learning=None`` says that it never is, and saves the objective's norms.

Both blends give the bits of ``h`` at alpha 0 whatever ``s`` holds, and exactly the end value at
alpha 1. ``alpha``, ``learning`` and ``released`` are 0-d tensors that are filled in place: a compiled
graph never specialises on them.

The operators are plain functions (they are the targets of graph nodes) around autograd functions,
because the gradients wanted here are not those of the values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxgraft_passes.errors import FxGraftError
from fxgraft_passes.objectives import seed_gradient


def isolated(h: Tensor, s: Tensor, mode: str, objective: str, radius: float, copy: bool = False) -> Tensor:
    """``h`` untouched, while the seed learns by its objective. ``copy`` where a consumer writes into it."""
    passed = _Isolated.apply(h, s, mode, objective, radius, copy)  # type: ignore[no-untyped-call]
    return _as_view(passed, h) if copy else passed  # type: ignore[no-any-return]


def residual(
    h: Tensor, f: Tensor, alpha: Tensor, learning: Tensor | None, objective: str, radius: float
) -> Tensor:
    """``h + alpha f``; the host's gradient is ``g`` at every alpha."""
    if learning is None and _is_away_from_zero(alpha):
        # Plain operations have the right gradients then, and cost less than a function in Python.
        return h + alpha.clone() * f.to(h.dtype)
    return _blended(h, f, alpha, learning, "residual", objective, radius)


def convex(
    h: Tensor, s: Tensor, alpha: Tensor, learning: Tensor | None, objective: str, radius: float
) -> Tensor:
    """``h + alpha (s - h)``: the seed takes the host's place as alpha goes to 1."""
    return _blended(h, s, alpha, learning, "convex", objective, radius)


BLENDS = {"residual": residual, "convex": convex, "gated": residual, "channelwise": residual}


def release(h: Tensor, released: Tensor) -> Tensor:
    """``h`` for a seed to read; its gradient reaches the host only once ``released`` is set."""
    return _Release.apply(h, released)  # type: ignore[no-any-return, no-untyped-call]


def shadowed(h: Tensor, s: Tensor, alpha: Tensor, learning: Tensor, mode: str) -> Tensor:
    """The end value for a seed that is still learning, the blend at ``alpha`` for one that is not."""
    share = torch.where(learning, torch.ones_like(alpha), alpha)
    s = s.to(h.dtype)
    return _mix(h, s, share) if mode == "convex" else _add(h, s, share)


def folded(h: Tensor, s: Tensor, mode: str, alpha: float) -> Tensor:
    """The blend at a constant ``alpha``, with the plain gradients: a fossil that was held below 1."""
    s = s.to(h.dtype)
    return h + alpha * (s - h) if mode == "convex" else h + alpha * s


def by_mode(training: bool, in_training: Any, in_eval: Any) -> Any:
    """The constant that a traced module passed on in its current train/eval mode."""
    return in_training if training else in_eval


def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A module's own code as one node of a graph. (Dynamo cannot trace ``operator.call``.)"""
    return forward(*args, **kwargs)


def returned(value: Any) -> Any:
    """The very value, as a node of its own: what a merged module returned, or what one reader reads."""
    return value


def assume(condition: bool, expected: bool) -> None:
    """Stand for a branch on sizes that a trace took. Raises `FxGraftError` where it would not be taken."""
    if bool(condition) is not expected:
        raise FxGraftError(
            "a module with a graft in it was called with sizes for which its code takes another path "
            "than in the example call; trace the host with an example of these sizes, or cull the graft"
        )


def _is_away_from_zero(alpha: Tensor) -> bool:
    """Whether alpha is known not to be 0. Looked at only where that is free: in eager, on a CPU."""
    is_free = alpha.device.type == "cpu" and alpha.dim() == 0 and not torch.compiler.is_compiling()
    return is_free and alpha.item() != 0


def _blended(
    h: Tensor, s: Tensor, alpha: Tensor, learning: Tensor | None, mode: str, objective: str, radius: float
) -> Tensor:
    blend = _Blend.apply(h, s, alpha, learning, mode, objective, radius)  # type: ignore[no-untyped-call]
    return blend if learning is None else _as_view(blend, h)


def _as_view(value: Tensor, h: Tensor) -> Tensor:
    """``value``, as a view if ``h`` is one.

    Where a view is written into, autograd adds up the gradients of those who read it before, and then that
    of its base. Of a copy that is no view it would add up all of them one by one, which rounds differently.
    """
    return value if h._base is None else value.view_as(value)


def _add(h: Tensor, f: Tensor, alpha: Tensor) -> Tensor:
    if _is_away_from_zero(alpha):
        return h + alpha * f
    # An alpha for each channel is no scalar to type promotion: half precision values would widen.
    return torch.where(alpha == 0, h, (h + alpha * f).to(h.dtype))


def _mix(h: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(alpha == 0, h, torch.where(alpha == 1, s, (h + alpha * (s - h)).to(h.dtype)))


class _Isolated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, s: Tensor, mode: str, objective: str, radius: float, copy: bool
    ) -> Tensor:
        ctx.law = (mode, objective, radius)
        ctx.save_for_backward(h, s)
        return h.clone(memory_format=torch.preserve_format) if copy else h.view_as(h)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        h, s = ctx.saved_tensors
        to_seed = None if ctx.law[1] == "shadow" else _learn(ctx.law, g, h, s)
        return g, to_seed, None, None, None, None


class _Blend(torch.autograd.Function):
    """Both blends: they differ in their value and in what the host's gradient is scaled by."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        s: Tensor,
        alpha: Tensor,
        learning: Tensor | None,
        mode: str,
        objective: str,
        radius: float,
    ) -> Tensor:
        ctx.law = (mode, objective, radius)
        # alpha may be filled with its next value before backward runs: keep this step's.
        alpha = alpha.clone()
        if learning is None:
            ctx.save_for_backward(alpha)
        else:
            ctx.save_for_backward(alpha, learning.clone(), h, s)
        ctx.seed_dtype = s.dtype
        s = s.to(h.dtype)
        return _mix(h, s, alpha) if mode == "convex" else _add(h, s, alpha)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        alpha, *learner = ctx.saved_tensors
        to_host = ((1 - alpha) * g).to(g.dtype) if ctx.law[0] == "convex" else g
        to_seed = (alpha * g).to(ctx.seed_dtype)
        if learner:
            learning, h, s = learner
            to_seed = torch.where(learning, _learn(ctx.law, g, h, s), to_seed)
        return to_host, to_seed, None, None, None, None, None


class _Release(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, released: Tensor) -> Tensor:
        ctx.save_for_backward(released.clone())
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (released,) = ctx.saved_tensors
        # x + -0.0 is x for every x, signed zeros included; x + 0.0 is not.
        return torch.where(released, g, torch.full_like(g, -0.0)), None


def _learn(law: tuple[str, str, float], g: Tensor, h: Tensor, s: Tensor) -> Tensor:
    mode, objective, radius = law
    branch = s.to(h.dtype)
    if mode == "convex":
        branch = branch - h
    return seed_gradient(objective, radius, g, h, branch).to(s.dtype)
