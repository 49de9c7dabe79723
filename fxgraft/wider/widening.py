"""One growth of one group of channels: planned, compared with the host as it is, and carried out or not at
all.

group, by ──► wider tensors, settings (a copy) ──► outputs compared ──► parameters, optimizers,
                                                                      averages, regions: one transaction
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import Optimizer

from fxgraft.errors import ChannelError
from fxgraft.host import engine
from fxgraft.host.channels import subject_of
from fxgraft.host.host import Host
from fxgraft.host.renewing import renew
from fxgraft.host.widened import Widened
from fxgraft.wider.moments import check_moments, replace_moments
from fxgraft_passes.channels.comparing import difference, outputs
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.channels.growth import Growth, grow
from fxgraft_passes.channels.replacing import replace_tensors
from fxgraft_passes.channels.subject import Subject

STATES = ("fresh", "copy")


@dataclass(frozen=True)
class Widening:
    """What `SeedManager.widen` did.

    Attributes:
        group: the name of the group of channels.
        by: how many more there are.
        size: how many there are now.
        init: how the new ones began.
        parameters: how many parameters the host has more.
        max_abs: the largest difference of its outputs on the example of the trace, in eval mode; 0.0: to the
            bit.
    """

    group: str
    by: int
    size: int
    init: str
    parameters: int
    max_abs: float


def widen(
    host: Host,
    group: str | ChannelGroup,
    by: int,
    init: str,
    optimizer_state: str,
    optimizers: Sequence[Optimizer],
    seed: int,
    outer: ExitStack | None = None,
) -> Widening:
    """Let a group of channels of ``host`` grow, whole or not at all.

    Args:
        host: the host.
        group: its name, or itself.
        by: how many channels more.
        init: how new ones begin.
        optimizer_state: ``"fresh"`` or ``"copy"``.
        optimizers: that train the host.
        seed: of the new weights' random streams.
        outer: is given what takes it back; None: it stays.

    Raises:
        ChannelError: it cannot grow so.
    """
    if optimizer_state not in STATES:
        raise ValueError(
            f"optimizer_state: expected one of {', '.join(map(repr, STATES))}; got {optimizer_state!r}"
        )
    found = group_of(host, group)
    subject = subject_of(host, host.example_call())
    with subject.session():
        before = outputs(subject)
        growth = grow(subject, found, by, init, seed, before)
    check_moments(growth, subject, optimizers)
    with ExitStack() as undo:
        carry_out(undo, host, growth, subject, optimizers, copies=optimizer_state == "copy")
        with subject.session():
            max_abs = difference(found.name, before, outputs(subject))
        done = undo.pop_all()
    if outer is not None:
        outer.push(done)
    more = sum(tensor.numel() - _old_size(growth, path) for path, tensor in growth.tensors.items())
    return Widening(found.name, by, found.size + by, init, more, max_abs)


def group_of(host: Host, group: Any) -> ChannelGroup:
    """The group of that name as the host is now.

    Raises:
        ChannelError: there is none; with the nearest names.
    """
    name = group.name if isinstance(group, ChannelGroup) else group
    channels = host.channels
    if not isinstance(name, str):
        raise ChannelError(f"group: expected a name, one of host.channels; got {type(group).__name__}")
    if name not in channels:
        near = difflib.get_close_matches(name, channels, n=3, cutoff=0.3) or list(channels)[:3]
        raise ChannelError(
            f"the host has no channels {name!r}; did you mean {', '.join(map(repr, near))}? host.channels "
            "has "
            f"all {len(channels)}"
        )
    return channels[name]


def carry_out(
    undo: ExitStack,
    host: Host,
    growth: Growth,
    subject: Subject,
    optimizers: Sequence[Optimizer],
    copies: bool,
) -> None:
    """Let the host be as planned: moments, tensors, numbers, regions, averages.

    Args:
        undo: is given what takes it back.
        host: the host.
        growth: what grows.
        subject: the host, as it is looked at.
        optimizers: that train it.
        copies: whether new moments are copies.
    """
    undo.callback(setattr, host, "widenings", host.widenings)
    numbers = [(s.path, s.name, s.new) for s in growth.settings if type(s.new) is float]
    seeds = tuple(placement.seed for placement in host.structure.placements)
    done = Widened(growth.group.name, growth.by, growth.init, tuple(numbers), seeds)
    host.widenings = (*host.widenings, done)
    undo.callback(engine.widened, host)
    replace_moments(undo, growth, subject, optimizers, copies)
    replace_tensors(undo, growth, subject)
    for setting in growth.settings:
        undo.callback(setting.apply(subject))
    engine.widened(host)
    renew(undo, host, host.example_call())
    for twin in list(host._links.followers):
        follow(undo, host, twin, growth)


def follow(undo: ExitStack, host: Host, twin: Host, growth: Growth) -> None:
    """Let an average of the host's weights grow along; its new entries are those of the host."""
    theirs = subject_of(twin, host.example_call())
    tensors = {path: fill(theirs.now(path).detach()) for path, fill in growth.fills.items()}
    undo.callback(setattr, twin, "widenings", twin.widenings)
    twin.widenings = host.widenings
    undo.callback(engine.widened, twin)
    replace_tensors(undo, replace(growth, tensors=tensors), theirs)
    for setting in growth.settings:
        undo.callback(setting.apply(theirs))
    engine.widened(twin)
    renew(undo, twin, host.example_call())


def _old_size(growth: Growth, path: str) -> int:
    size = growth.tensors[path].numel()
    for _, found in growth.spreads[path]:
        size = size // len(found.origin) * (len(found.origin) - sum(found.fresh))
    return size
