"""The optimizer and groups requested at a germination: checked, and stored as numbers that stay valid.

A number of a group is, to people, its place in ``optimizer.param_groups``; here it is its place among those
that are no seed's own, which come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxgraft.optimizers.group_index import Group, shared_groups
from fxgraft.optimizers.groups import OWNER
from fxgraft.optimizers.wrapped import inner

Groups = int | Mapping[str, Any] | Callable[[str, nn.Parameter], int | Mapping[str, Any] | None]
"""A group by its place in ``optimizer.param_groups``, or itself; or what gives either for a parameter."""


def number_of(wanted: Optimizer | int, optimizers: Sequence[Optimizer]) -> int:
    """The number of an optimizer that is given by itself or by that number. Raises `ValueError`."""
    if isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted < len(optimizers):
        return wanted
    given = inner(wanted)
    for number, known in enumerate(optimizers):
        if known is given:
            return number
    there = ", ".join(f"{number}: {type(known).__name__}" for number, known in enumerate(optimizers))
    raise ValueError(
        f"optimizer: expected one of those that the manager was made with, or its number ({there}); "
        f"got {wanted if isinstance(wanted, int) else type(wanted).__name__}"
    )


def group_of(wanted: object, number: int | None, optimizers: Sequence[Optimizer]) -> Group:
    """The group that is asked for, of the optimizer of that ``number`` if there is one.

    Raises:
        ValueError: there is no such group, or it is a seed's own.
    """
    known = range(len(optimizers)) if number is None else [number]
    if isinstance(wanted, Mapping):
        found = [(n, group) for n in known for group in optimizers[n].param_groups if group is wanted]
    elif isinstance(wanted, int) and not isinstance(wanted, bool):
        if len(known) != 1:
            raise ValueError(
                f"groups: {wanted} is a group of which optimizer? Expected optimizer= as well, or the group "
                f"itself (optimizer.param_groups[{wanted}])"
            )
        groups = optimizers[known[0]].param_groups
        found = [(known[0], groups[wanted])] if 0 <= wanted < len(groups) else []
    else:
        found = []
    if not found:
        have = ((type(optimizers[n]).__name__, len(optimizers[n].param_groups)) for n in known)
        available = ", ".join(f"{kind} has {groups}" for kind, groups in have)
        raise ValueError(
            f"groups: expected the place of a group in optimizer.param_groups, the group itself, or a "
            f"function of a parameter's name and the parameter that gives one of these ({available}); "
            f"got {wanted if isinstance(wanted, int) else type(wanted).__name__}"
        )
    optimizer, group = found[0]
    if OWNER in group:
        raise ValueError(
            f"groups: expected a group that stays; that one is of seed {group[OWNER]!r}, and goes with it"
        )
    shared = shared_groups(optimizers[optimizer])
    return optimizer, next(place for place, other in enumerate(shared) if other is group)
