"""How parameters leave optimizers: groups, state, and a seed's own group with the last of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxgraft.optimizers import groups
from fxgraft.optimizers.groups import OWNER
from fxgraft.optimizers.wrapped import with_nested


def take_out(
    optimizers: Sequence[Optimizer], schedulers: Sequence[Any], parameters: Iterable[nn.Parameter]
) -> None:
    """Take parameters out of every group and every optimizer's state; a seed's group that is empty goes too.

    Args:
        optimizers: to take them out of.
        schedulers: of these, to keep in step with groups that go.
        parameters: those that leave.
    """
    leaving = {id(p): p for p in parameters}
    for optimizer in optimizers:
        for holder in with_nested([optimizer]):
            for group in holder.param_groups:
                _shorten(group, leaving.keys() & set(map(id, group["params"])))
            for parameter in leaving.values():
                holder.state.pop(parameter, None)
        for place in reversed(range(len(optimizer.param_groups))):
            group = optimizer.param_groups[place]
            if OWNER in group and not group["params"]:
                groups.remove(optimizer, place, schedulers)


def _shorten(group: dict[str, Any], leaving: set[int]) -> None:
    """Delete parameters from a group, by their ids: from its end, where those of seeds are."""
    parameters = group["params"]
    place = len(parameters)
    while leaving:
        place -= 1
        if id(parameters[place]) in leaving:
            leaving.discard(id(parameters[place]))
            for key in ("params", "param_names"):
                if key in group:
                    del group[key][place]
