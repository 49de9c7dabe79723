"""What optimizers keep for parameters that grow: old entries stay where they belong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from fxgraft.errors import ChannelError
from fxgraft.optimizers.entries import following, fresh_state, weights_in
from fxgraft.optimizers.wrapped import with_nested
from fxgraft_passes.channels.growth import GroupGrowth
from fxgraft_passes.channels.subject import Subject


def check_moments(growth: GroupGrowth, subject: Subject, optimizers: Sequence[Optimizer]) -> None:
    """Raise `ChannelError` where an optimizer keeps something that cannot grow with its parameter."""
    for path, parameter, holder in _held(growth, subject, optimizers):
        if isinstance(holder, LBFGS) and holder.state and _has(holder, parameter):
            raise ChannelError(
                f"{growth.group.name}: expected an optimizer that keeps something for each parameter by "
                f"itself; LBFGS keeps its direction for all of them as one vector, which cannot grow with "
                f"{path}. Make the optimizer anew, widen first, then train"
            )
        for key, value in in_another_shape(holder, parameter):
            raise ChannelError(
                f"{growth.group.name}: expected an optimizer whose state for {path} has its shape, "
                f"{tuple(parameter.shape)}; {type(holder).__name__} keeps {key!r} as "
                f"{_describe_value(value)}, which cannot grow with it. Make the optimizer anew, "
                f"widen first, then train"
            )


def in_another_shape(holder: Optimizer, parameter: nn.Parameter) -> Iterator[tuple[str, Any]]:
    """What an optimizer keeps for a parameter that is more than one number, and not of its shape."""
    for key, value in holder.state.get(parameter, {}).items():
        if not _is_of(parameter, value) and _is_more(value):
            yield key, value


def replace_moments(
    undo: ExitStack, growth: GroupGrowth, subject: Subject, optimizers: Sequence[Optimizer], copies: bool
) -> None:
    """Enlarge what optimizers keep for each parameter that grows.

    Args:
        undo: gets the callbacks that restore the old ones.
        growth: what grows.
        subject: whose parameters, as they were before.
        optimizers: those that may have them.
        copies: whether new entries are those of what they are made like; else they are what the optimizer
            begins with.
    """
    for path, parameter, holder in _held(growth, subject, optimizers):
        state = holder.state.get(parameter)
        if not state:
            continue
        undo.callback(state.update, dict(state))
        begins = {} if copies else fresh_state(holder, parameter)
        weights = weights_in(holder, parameter)
        for key, value in list(state.items()):
            if not _is_of(parameter, value):
                continue
            state[key] = growth.spread(path, value, copies)
            if key not in weights and key not in begins:
                continue
            is_new = growth.spread(path, torch.ones_like(value), False) == 0
            if key in weights:
                old = growth.spread(path, parameter.detach(), copies).masked_fill(is_new, math.nan)
                state[key] = following(old, growth.tensors[path], state[key])
            else:
                state[key].masked_fill_(is_new, begins[key])


def _held(
    growth: GroupGrowth, subject: Subject, optimizers: Sequence[Optimizer]
) -> Iterator[tuple[str, nn.Parameter, Optimizer]]:
    for path in growth.tensors:
        parameter = subject.now(path)
        if isinstance(parameter, nn.Parameter):
            for holder in with_nested(optimizers):
                yield path, parameter, holder


def _has(holder: Optimizer, parameter: nn.Parameter) -> bool:
    return any(known is parameter for group in holder.param_groups for known in group["params"])


def _is_of(parameter: Tensor, value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _is_more(value: Any) -> bool:
    """Whether it may be one number for each of something, and so not just a count of steps."""
    if isinstance(value, Tensor):
        return value.numel() > 1
    return isinstance(value, (list, tuple, dict)) and len(value) > 0


def _describe_value(value: Any) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )
