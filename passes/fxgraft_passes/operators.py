"""The operators that a graft puts into a graph: what leaves the slot, and where gradients go.

``h`` is the host's value, ``s`` the seed's output (``f`` where it is added), ``g`` the loss gradient
at the slot's output.

===============  ====================================  ======================  ==========================
operator         value                                 gradient of ``h``       gradient of the seed
===============  ====================================  ======================  ==========================
``isolated``     ``h``, the bits and (but for ``copy``)  ``g``, the same object  by the objective
                 the memory
``residual``     ``h + alpha f``                       ``g``                   ``alpha g`` (objective*)
``convex``       ``h + alpha (s - h)``, as ``lerp``    ``(1 - alpha) g``       ``alpha g`` (objective*)
``release``      ``h`` (a seed's input)                none until ``released``  --
===============  ====================================  ======================  ==========================

(*) while the 0-d flag ``learning`` is set, so that one compiled graph serves seeds in any stage;
``learning=None`` says that it never is, and saves the objective's norms.

Both blends give the bits of ``h`` at alpha 0 whatever ``s`` holds, and exactly the end value at
alpha 1. ``alpha``, ``learning`` and ``released`` are 0-d tensors that are filled in place: a compiled
graph never specialises on them.

**Derivatives of any order.** The gradient of ``h`` is differentiable again (``create_graph=True``), as
that of the host's value is. The gradient of an *isolated* seed is a constant to further derivatives:
it depends on ``g``, so a sum over all gradients (a gradient penalty, a Hessian product) would otherwise
come back to the host through the seed. What an objective gives is a constant for any seed: it is no
derivative of the value. A blended seed that is not isolated has the derivatives of the value, all of them.

The operators are plain functions (they are the targets of graph nodes) around autograd functions,
because the gradients wanted here are not those of the values. Where plain operations have the right ones
they cost less: in eager mode on a CPU, where alpha and the flags can be looked at for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
import torch.fx as fx
from torch import Tensor

from fxgraft_passes._strides import alias, in_strides_of
from fxgraft_passes.blends import (
    FULL_PRECISION,
    Blend,
    Isolated,
    Release,
    add,
    between,
    gets_constants,
    mix,
)
from fxgraft_passes.devices import is_free_to_look_at


def isolated(h: Tensor, s: Tensor, mode: str, objective: str, radius: float, copy: bool = False) -> Tensor:
    """``h`` untouched, while the seed learns by its objective. ``copy`` where a consumer writes into it."""
    if _is_traced(h):
        return _stays(h, isolated, s, mode, objective, radius, copy)
    passed = Isolated.apply(h, s, mode, objective, radius, copy)  # type: ignore[no-untyped-call]
    return _with_shown_branch(_as_view(passed, h) if copy else passed, s)


def residual(
    h: Tensor,
    f: Tensor,
    alpha: Tensor,
    learning: Tensor | None,
    objective: str,
    radius: float,
    isolated: bool = True,
) -> Tensor:
    """``h + alpha f``; the direct gradient of ``h`` is ``g`` at every alpha."""
    if _is_traced(h):
        return _stays(h, residual, f, alpha, learning, objective, radius, isolated)
    share: float | Tensor = _known_share(alpha, learning)
    if not share:
        return _blended(h, f, alpha, learning, "residual", objective, radius, isolated)
    if h.dtype not in FULL_PRECISION:
        # torch rounds a number otherwise there than a tensor, which a compiled graph has.
        share = alpha.clone()
    added = share * (f if f.dtype is h.dtype else f.to(h.dtype))
    if isolated and added.requires_grad:
        gets_constants(added)
    return in_strides_of(h, h + added, is_same=False)


def convex(
    h: Tensor,
    s: Tensor,
    alpha: Tensor,
    learning: Tensor | None,
    objective: str,
    radius: float,
    isolated: bool = True,
) -> Tensor:
    """``h + alpha (s - h)``: the seed takes the host's place as alpha goes to 1."""
    if _is_traced(h):
        return _stays(h, convex, s, alpha, learning, objective, radius, isolated)
    share = _known_share(alpha, learning)
    if not share or share == 1 or h.dtype not in FULL_PRECISION:
        return _blended(h, s, alpha, learning, "convex", objective, radius, isolated)
    if s.dtype is not h.dtype:
        s = s.to(h.dtype)
    if isolated and s.requires_grad:
        if s.is_leaf or s._backward_hooks is not None:
            s = s.view_as(s)
        gets_constants(s)
    return in_strides_of(h, torch.lerp(h, s, share), is_same=False)


BLENDS = {"residual": residual, "convex": convex, "gated": residual, "channelwise": residual}


def release(h: Tensor, released: Tensor) -> Tensor:
    """``h`` for a seed to read; its gradient reaches the host only once ``released`` is set."""
    if _is_traced(h):
        return _stays(h, release, released)
    if is_free_to_look_at(released):
        # No gradient is computed then only to be dropped.
        return alias(h) if released.item() else h.detach()
    return Release.apply(h, released)  # type: ignore[no-any-return, no-untyped-call]


def shadowed(h: Tensor, s: Tensor, alpha: Tensor, learning: Tensor, mode: str) -> Tensor:
    """The end value for a seed that is still learning, the blend at ``alpha`` for one that is not."""
    if _is_traced(h):
        return _stays(h, shadowed, s, alpha, learning, mode)
    share = torch.where(learning, torch.ones_like(alpha), alpha)
    s = s.to(h.dtype)
    return mix(h, s, share) if mode == "convex" else add(h, s, share)


def folded(h: Tensor, s: Tensor, mode: str, alpha: float) -> Tensor:
    """The blend at a constant ``alpha``, with the plain gradients: a fossil that was held below 1."""
    if _is_traced(h):
        return _stays(h, folded, s, mode, alpha)
    s = s.to(h.dtype)
    return between(h, s, alpha) if mode == "convex" else h + alpha * s


def returned(value: Any) -> Any:
    """The very value, as a node of its own: what a merged module returned, or what one reader reads."""
    return value


def _is_traced(h: Any) -> bool:
    return isinstance(h, fx.Proxy)


def _stays(h: Any, operator: Callable[..., Tensor], *args: Any) -> Tensor:
    """The node of an operator, where a graph that has one is traced: ``pickle`` does that as it loads one."""
    return cast(Tensor, h.tracer.create_proxy("call_function", operator, (h, *args), {}))


def _known_share(alpha: Tensor, learning: Tensor | None) -> float:
    """Alpha, where plain operations may have the value and the gradients of a blend; else 0."""
    if not is_free_to_look_at(alpha):
        return 0.0
    return 0.0 if learning is not None and learning.item() else alpha.item()


def _blended(
    h: Tensor,
    s: Tensor,
    alpha: Tensor,
    learning: Tensor | None,
    mode: str,
    objective: str,
    radius: float,
    isolated: bool,
) -> Tensor:
    options = (mode, objective, radius, isolated)
    blend = Blend.apply(h, s, alpha, learning, options)  # type: ignore[no-untyped-call]
    return _with_shown_branch(blend if learning is None else _as_view(blend, h), s)


_are_branches_shown: ContextVar[bool] = ContextVar("are_branches_shown", default=False)


@contextmanager
def branches_shown() -> Iterator[None]:
    """Inside, operations show that a seed's output has the dimensions of the value, also if it adds nothing.

    For an analysis of the operations of a run. Values are the same as outside.
    """
    token = _are_branches_shown.set(True)
    try:
        yield
    finally:
        _are_branches_shown.reset(token)


def _with_shown_branch(value: Tensor, s: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or not _are_branches_shown.get():
        return value
    return torch.where(s != s, value, value)


def _as_view(value: Tensor, h: Tensor) -> Tensor:
    """``value``, as a view if ``h`` is one.

    Where a view is written into, autograd adds up the gradients of its earlier readers, and then that
    of its base. Of a copy that is no view it would add up all of them one by one, which rounds differently.
    """
    return value if h._base is None else alias(value)
