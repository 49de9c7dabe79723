"""One growth of one group of channels: planned, compared with the host as it is, and carried out or not at
all.

group, by ──► wider tensors, settings (a copy) ──► outputs compared ──► parameters, optimizers,
                                                                      averages, regions: one transaction
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fxgraft.errors import ChannelError
from fxgraft.host import engine
from fxgraft.host.channels import Before, Widened, subject_of
from fxgraft.host.current_form import current_form
from fxgraft.host.host import Host
from fxgraft.host.retracing import Retrace, retrace
from fxgraft.resizing._moments import check_moments, replace_moments
from fxgraft.resizing._other_calls import other_calls
from fxgraft.resizing.arguments import group_of
from fxgraft_passes.channels.comparing import difference, outputs
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.channels.growth import GroupGrowth, grow
from fxgraft_passes.channels.replacing import replace_tensors
from fxgraft_passes.channels.subject import Subject

STATES = ("fresh", "copy")
_NONE: Mapping[Host, Retrace] = MappingProxyType({})


@dataclass
class Widening:
    """The result of `SeedManager.widen`; in `together` or in the background, it is complete later.

    Attributes:
        group: the name of the group of channels.
        by: the number of new channels.
        size: the number of channels then; None until it is known.
        init: how the new channels are initialised.
        parameters: the number of new parameters (elements) of the host; None until it is done.
        max_abs: the largest difference of the outputs in the example call, in eval mode; 0.0: equal to the
            bit; None until it is done.
        failed: the reason why it failed; None if it did not.
    """

    group: str
    by: int
    size: int | None
    init: str
    parameters: int | None = None
    max_abs: float | None = None
    failed: str | None = None

    @property
    def done(self) -> bool:
        """Whether the change is made."""
        return self.max_abs is not None


@dataclass
class PreparedWidening:
    """What is known of a growth that was planned, or carried out and reverted, for its final run.

    Attributes:
        form: of the host before.
        growth: as it was planned; its tensors are made anew.
        retraces: the traces of the host and of its averages; empty where it was planned only.
    """

    form: tuple[object, ...]
    growth: GroupGrowth
    retraces: dict[Host, Retrace]

    def is_of(self, host: Host) -> bool:
        """Whether the host is as it was before."""
        return current_form(host) == self.form


def plan(host: Host, group: str | ChannelGroup, by: int, init: str, seed: int) -> PreparedWidening:
    """What `widen` finds out first. Changes nothing.

    Raises:
        ChannelError: it cannot grow so.
    """
    growth, _ = _grown(host, subject_of(host, host.example_call()), group, by, init, seed)
    return PreparedWidening(current_form(host), replace(growth, tensors={}), {})


def widen(
    host: Host,
    group: str | ChannelGroup,
    by: int,
    init: str,
    optimizer_state: str,
    optimizers: Sequence[Optimizer],
    seed: int,
    outer: ExitStack | None = None,
    prepared: PreparedWidening | None = None,
    is_dry_run: bool = False,
) -> tuple[Widening, PreparedWidening]:
    """Add channels to a group of ``host``; if it fails, nothing is changed.

    Args:
        host: the host.
        group: its name, or itself.
        by: how many channels more.
        init: how new ones begin.
        optimizer_state: ``"fresh"`` or ``"copy"``.
        optimizers: that train the host.
        seed: of the new weights' random streams.
        outer: gets the callbacks that revert it; None: it is final.
        prepared: what `plan` returned, or an earlier call that was reverted: what was found out is used.
        is_dry_run: whether it will be reverted: what `plan` has checked is not checked again.

    Raises:
        ChannelError: it cannot grow so.
    """
    check_state(optimizer_state)
    if prepared is not None and not prepared.is_of(host):
        prepared = None
    subject = subject_of(host, host.example_call())
    form = current_form(host)
    before: list[Tensor] | None = None
    if prepared is None:
        growth, before = _grown(host, subject, group, by, init, seed)
    else:
        growth = prepared.growth.of(subject)
        if not is_dry_run:
            before = _outputs(subject)
    known = {} if prepared is None else prepared.retraces
    check_moments(growth, subject, optimizers)
    with ExitStack() as undo:
        retraces = carry_out(
            undo, host, growth, subject, optimizers, copies=optimizer_state == "copy", known=known
        )
        max_abs = None if before is None else _difference(growth.group.name, before, subject)
        done = undo.pop_all()
    if outer is not None:
        outer.push(done)
    more = sum(tensor.numel() - _old_size(growth, path) for path, tensor in growth.tensors.items())
    widening = Widening(growth.group.name, by, growth.group.size + by, init, more, max_abs)
    return widening, PreparedWidening(form, replace(growth, tensors={}), retraces)


def _grown(
    host: Host, subject: Subject, group: str | ChannelGroup, by: int, init: str, seed: int
) -> tuple[GroupGrowth, list[Tensor]]:
    """The growth, which keeps the outputs; and these."""
    found = group_of(host, group)
    with subject.session():
        before = outputs(subject)
        others = _outputs_of_others(host, subject)
        growth = grow(subject, found, by, init, seed, before)
        with growth.in_place(subject):
            for other, words, expected in others:
                try:
                    difference(found.name, expected, other)
                except ChannelError as error:
                    raise ChannelError(
                        f"{error}; in a call {words}. Let both ways use the channels alike, or choose "
                        f"another group"
                    ) from error
        return growth, before


def _outputs_of_others(host: Host, subject: Subject) -> list[tuple[Subject, str, list[Tensor]]]:
    """What the host returns in calls of other sizes in which its code takes another way, where it runs."""
    found = []
    for call in other_calls(host, (subject.args, subject.kwargs)):
        other = replace(subject, args=call.args, kwargs=call.kwargs)
        with suppress(Exception):  # it is not made for such a call
            expected = outputs(other)
            if all(bool(tensor.isfinite().any()) for tensor in expected if tensor.numel()):
                found.append((other, call.words, expected))
    return found


def _outputs(subject: Subject) -> list[Tensor]:
    with subject.session():
        return outputs(subject)


def _difference(name: str, before: list[Tensor], subject: Subject) -> float:
    with subject.session():
        return difference(name, before, subject)


def check_state(optimizer_state: Any) -> None:
    """Raise `ValueError` for what no new moment can begin as."""
    if optimizer_state not in STATES:
        raise ValueError(
            f"optimizer_state: expected one of {', '.join(map(repr, STATES))}; got {optimizer_state!r}"
        )


def carry_out(
    undo: ExitStack,
    host: Host,
    growth: GroupGrowth,
    subject: Subject,
    optimizers: Sequence[Optimizer],
    copies: bool,
    known: Mapping[Host, Retrace] = _NONE,
) -> dict[Host, Retrace]:
    """Apply the plan to the host: moments, tensors, numbers, regions, averages.

    Args:
        undo: gets the callbacks that revert it.
        host: the host.
        growth: what grows.
        subject: the host, as it is looked at.
        optimizers: that train it.
        copies: whether new moments are copies.
        known: traces of host and averages in these sizes, that are there already.

    Returns:
        Those traces.
    """
    undo.callback(setattr, host, "widenings", host.widenings)
    numbers = [(s.path, s.name, s.new) for s in growth.settings if type(s.new) is float]
    seeds = tuple(placement.seed for placement in host.structure.placements)
    shapes = {path: tuple(subject.now(path).shape) for path in growth.tensors}
    before = Before(shapes, tuple(growth.settings))
    done = Widened(growth.group.name, growth.by, growth.init, tuple(numbers), seeds, before)
    host.widenings = (*host.widenings, done)
    undo.callback(engine.widened, host)
    replace_moments(undo, growth, subject, optimizers, copies)
    replace_tensors(undo, growth, subject)
    for setting in growth.settings:
        undo.callback(setting.apply(subject))
    engine.widened(host)
    retraces = {host: retrace(undo, host, host.example_call(), known.get(host))}
    for twin in list(host._links.followers):
        retraces[twin] = follow(undo, host, twin, growth, known.get(twin))
    return retraces


def follow(
    undo: ExitStack, host: Host, twin: Host, growth: GroupGrowth, known: Retrace | None = None
) -> Retrace:
    """Enlarge an average of the host's weights; its new entries are those of the host."""
    theirs = subject_of(twin, host.example_call())
    tensors = {path: fill(theirs.now(path).detach()) for path, fill in growth.fills.items()}
    undo.callback(setattr, twin, "widenings", twin.widenings)
    twin.widenings = host.widenings
    undo.callback(engine.widened, twin)
    replace_tensors(undo, replace(growth, tensors=tensors), theirs)
    for setting in growth.settings:
        undo.callback(setting.apply(theirs))
    engine.widened(twin)
    return retrace(undo, twin, host.example_call(), known)


def _old_size(growth: GroupGrowth, path: str) -> int:
    size = growth.tensors[path].numel()
    for _, found in growth.spreads[path]:
        size = size // len(found.origin) * (len(found.origin) - sum(found.fresh))
    return size
