"""Optimizer groups of a seed's own, for hyper-parameters of its own, kept in step with the schedulers.

A learning-rate scheduler holds lists with a value for each group. torch extends none of them when a
group is added: five of its schedulers fail at their next step then. So they are extended here, with the
values of the group that the seed would have joined, scaled to its own lr, and shrunk again at a cull.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.optimizers.wrapped import inner, schedules

OWNER = "fxgraft_seed"
"""The key by which a group says whose it is. A key, because ``load_state_dict`` makes groups anew."""

_LRS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_MOMENTUMS = ("max_momentum", "base_momentum")
_NOT_HYPER = {"params", "param_names", OWNER, *_LRS[1:], *_MOMENTUMS}

_LISTS_OF_LRS = ("base_lrs", "_last_lr", "max_lrs", "min_lrs")
_LISTS_OF_MOMENTUMS = ("max_momentums", "base_momentums")
_LISTS = (*_LISTS_OF_LRS, *_LISTS_OF_MOMENTUMS, "lr_lambdas")


@dataclass(frozen=True)
class OwnGroup:
    """A group to be added: checked and computed, with nothing changed yet.

    Attributes:
        optimizer: where.
        settings: everything but the parameters.
        extensions: scheduler, name of its list, value for the new group.
    """

    optimizer: Optimizer
    settings: dict[str, Any]
    extensions: list[tuple[Any, str, Any]]

    def add(self, named: Mapping[str, nn.Parameter]) -> None:
        """Add the group, with these parameters, to the optimizer and to its schedulers."""
        with_names = "param_names" in self.optimizer.param_groups[0]
        params = list(named.items()) if with_names else list(named.values())
        self.optimizer.add_param_group({"params": params, **self.settings})
        for scheduler, name, value in self.extensions:
            # A new list: a SequentialLR and the scheduler in it may hold the same one.
            setattr(scheduler, name, [*getattr(scheduler, name), value])


def plan(
    optimizer: Optimizer, like: dict[str, Any], owner: str, hyper: Mapping[str, Any], given: Sequence[Any]
) -> OwnGroup:
    """A group for ``owner`` with the settings of the group ``like``, but for those in ``hyper``.

    Raises:
        ValueError: for an invalid value, or a schedule that is not among those ``given``.
    """
    schedulers = list(_schedulers(given, optimizer))
    if _is_unknown(like, schedulers):
        raise ValueError(
            f"hyper: the {type(optimizer).__name__} of seed {owner!r} has a learning-rate scheduler, which a "
            f"group of its own would break; pass it as SeedManager(..., schedulers=[...])"
        )
    place = next(i for i, group in enumerate(optimizer.param_groups) if group is like)
    own = {name: _checked(name, value, like[name]) for name, value in hyper.items() if name in like}
    scale = _scale(own, like, place, schedulers)
    momentum = own.get("momentum", own["betas"][0] if "betas" in own else None)

    settings = {k: copy.deepcopy(v) for k, v in like.items() if k not in ("params", "param_names")}
    settings.update({name: value for name, value in own.items() if name != "lr"})
    settings.update({name: scale(like[name]) for name in _LRS if name in like})
    if momentum is not None:  # what cycles with the lr stays at the one asked for
        settings.update({name: momentum for name in _MOMENTUMS if name in like})

    extensions = []
    for scheduler, name in _lists(schedulers, len(optimizer.param_groups)):
        value = getattr(scheduler, name)[place]
        if name in _LISTS_OF_LRS:
            value = scale(value)
        elif name in _LISTS_OF_MOMENTUMS and momentum is not None:
            value = momentum
        extensions.append((scheduler, name, value))
    return OwnGroup(optimizer, {**settings, OWNER: owner}, extensions)


def are_counterparts(one: Mapping[str, Any], other: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Whether two groups of an optimizer differ by their weight decay alone (or by what they are called)."""

    def compared(group: Mapping[str, Any]) -> dict[str, Any]:
        settings = {k: v for k, v in group.items() if k not in ("params", "param_names", "weight_decay")}
        return {k: v for k, v in settings.items() if k in defaults or not isinstance(v, str)}

    ours, theirs = compared(one), compared(other)
    return ours.keys() == theirs.keys() and all(_is_same(ours[key], theirs[key]) for key in ours)


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other or (
            isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
        )
    return bool(one == other)


def remove(optimizer: Optimizer, place: int, given: Sequence[Any]) -> None:
    """Take a group out of an optimizer and of its schedulers.

    A list that is shorter was not extended: the adding of the group failed before it.
    """
    for scheduler, name in list(_lists(_schedulers(given, optimizer), len(optimizer.param_groups))):
        values = getattr(scheduler, name)
        setattr(scheduler, name, [*values[:place], *values[place + 1 :]])
    del optimizer.param_groups[place]


def unknown_schedules(optimizers: Sequence[Optimizer], given: Sequence[Any]) -> list[str]:
    """The kinds of optimizers that have a learning-rate scheduler which is not among those ``given``."""
    return [
        type(optimizer).__name__
        for optimizer in optimizers
        if any(_is_unknown(group, list(_schedulers(given, optimizer))) for group in optimizer.param_groups)
    ]


def _is_unknown(group: Mapping[str, Any], schedulers: Sequence[Any]) -> bool:
    return "initial_lr" in group and not any(hasattr(s, "base_lrs") for s in schedulers)


def check(hyper: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise `ValueError` for a name that none of ``groups`` has a setting of, or a value that none can be."""
    if not isinstance(hyper, Mapping):
        raise ValueError(f"hyper: expected settings by name, like {{'lr': 1e-3}}; got {hyper!r}")
    known = sorted({name for group in groups for name in group} - _NOT_HYPER)
    if unknown := [name for name in hyper if name not in known]:
        raise ValueError(
            f"hyper: unknown {', '.join(map(repr, unknown))}; the optimizers know: {', '.join(known)}"
        )
    for group in groups:
        for name in hyper.keys() & group.keys():
            _checked(name, hyper[name], group[name])


def _scale(
    own: Mapping[str, Any], like: Mapping[str, Any], place: int, schedulers: Sequence[Any]
) -> Callable[[Any], Any]:
    """Learning rate of the group ``like`` -> that of the seed at the same point of the schedule.

    The seed's lr is to its group what the initial lr is to ``like``; under a schedule with a peak
    (OneCycleLR, CyclicLR), what the peak is.
    """
    if "lr" not in own:
        return copy.deepcopy
    peaks = [s.max_lrs[place] for s in schedulers if hasattr(s, "max_lrs")]
    nominal = float(like.get("max_lr", peaks[0] if peaks else like.get("initial_lr", like["lr"])))
    if nominal == 0 and schedulers:
        raise ValueError(
            "hyper: lr cannot follow the schedule of a group whose own lr is 0. Choose a group with another "
            "lr by groups=, or leave lr out"
        )
    lr = float(own["lr"])

    def scale(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.new_full((), lr) if float(value) == nominal else value / nominal * lr
        return lr if value == nominal else lr * (float(value) / nominal)

    return scale


def _schedulers(given: Sequence[Any], optimizer: Optimizer) -> Iterator[Any]:
    """Those of ``optimizer``, each once, with those inside of them."""
    seen: set[int] = set()
    waiting = list(given)
    while waiting:
        scheduler = inner(waiting.pop(0))
        if id(scheduler) in seen:
            continue
        seen.add(id(scheduler))
        waiting += getattr(scheduler, "_schedulers", ())
        if schedules(scheduler, optimizer):
            yield scheduler


def _lists(schedulers: Sequence[Any] | Iterator[Any], groups: int) -> Iterator[tuple[Any, str]]:
    """Scheduler and name of every list with one value for each of so many groups."""
    for scheduler in schedulers:
        for name in _LISTS:
            values = vars(scheduler).get(name)
            if isinstance(values, (list, tuple)) and len(values) == groups:
                yield scheduler, name


def _checked(name: str, value: Any, like: Any) -> Any:
    """``value`` as a setting in the place of ``like``."""
    if isinstance(like, (list, tuple)):
        if isinstance(value, (list, tuple)) and len(value) == len(like):
            return tuple(_checked(name, v, k) for v, k in zip(value, like, strict=True))
    elif isinstance(like, (int, float, Tensor)) and not isinstance(like, bool):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and math.isfinite(value) and (name != "lr" or value >= 0):
            return value
    elif like is None or value is None:
        if isinstance(value or like, (bool, int, float, str, type(None))):
            return value
    elif isinstance(value, type(like)):
        return value
    raise ValueError(f"hyper: {name}: expected a value like {like!r}; got {value!r}")
