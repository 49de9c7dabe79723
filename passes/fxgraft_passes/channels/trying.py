"""Which groups the model's own code can run with when they are larger: it is tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm

from torch import Tensor

from fxgraft_passes.channels._guessing import AmbiguousExampleError
from fxgraft_passes.channels.comparing import outputs
from fxgraft_passes.channels.groups import ChannelGroup, Member
from fxgraft_passes.channels.growth import grow
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.errors import ChannelError

_ALIGNED = 8
"""Units at a time, where a kernel (a grouped product) takes only strides that are a multiple of 16 bytes."""


def tried(subject: Subject, groups: Mapping[str, ChannelGroup]) -> dict[str, ChannelGroup]:
    """The groups; those with which the model's own code does not run when they are larger are fixed.

    So are those with which it computes something else, where runs have data. Groups of equal layers are tried
    once.
    """
    known: dict[object, ChannelGroup] = {}
    found = dict(groups)
    with subject.session():
        before = None if subject.without_data else outputs(subject)
        for name, group in groups.items():
            if group.fixed is not None:
                continue
            key = _kind(subject, group)
            if key not in known or known[key].companions or group.companions:
                known[key] = _tried(subject, group, groups, before)
            like = known[key]
            is_own = like.companions or like.atom is group.atom
            found[name] = like if is_own else replace(group, fixed=_as_in(like), grain=like.grain)
    return found


def _as_in(like: ChannelGroup) -> str | None:
    """Why a group cannot grow that is like another one."""
    return None if like.fixed is None else f"as {like.name}, which is like it: {like.fixed}"


def tried_one(subject: Subject, groups: Mapping[str, ChannelGroup], name: str) -> ChannelGroup:
    """One of the groups, as `tried` has it, for a fraction of the runs that all of them take."""
    group = groups[name]
    if group.fixed is not None:
        return group
    with subject.session():
        return _tried(subject, group, groups, None if subject.without_data else outputs(subject))


def _tried(
    subject: Subject,
    group: ChannelGroup,
    groups: Mapping[str, ChannelGroup],
    before: Sequence[Tensor] | None,
) -> ChannelGroup:
    """The group as it can grow: by itself, by aligned numbers, with others in proportion, or not at all."""
    why = _why_not(subject, group, before)
    if why is None:
        return group
    if "multiple" in why.reason:  # kernels of which the strides have to be aligned
        aligned = replace(group, grain=group.unit * _ALIGNED)
        if _why_not(subject, aligned, before) is None:
            return aligned
    together, further = group, why
    while (larger := _with_companions(together, groups, further.at)) is not None:
        together, again = larger, _why_not(subject, larger, before)
        if again is None:
            return together
        further = again
    return replace(group, fixed=(further if further.is_of_the_example else why).reason)


@dataclass(frozen=True)
class _Failure:
    """Why a group cannot grow, the module that does not run, and whether another example would help."""

    reason: str
    at: str
    is_of_the_example: bool


def _why_not(subject: Subject, group: ChannelGroup, before: Sequence[Tensor] | None) -> _Failure | None:
    try:
        grow(subject, group, group.grain, "zero", 0, before)
    except ChannelError as error:
        is_of_the_example = isinstance(error, AmbiguousExampleError)
        reason = str(error).removeprefix(f"{group.name}: ")
        return _Failure(reason, getattr(error, "at", ""), is_of_the_example)
    return None


def _with_companions(group: ChannelGroup, groups: Mapping[str, ChannelGroup], at: str) -> ChannelGroup | None:
    """The group with the sizes of heads of the module that fails, which code takes as shares of its size."""
    size, others = group.atom.size, dict(group.companions)
    for other in groups.values():
        inside = at and all(m.path == at or m.path.startswith(f"{at}.") for m in other.members)
        is_free = not other.atom.reasons and other.atom is not group.atom and other.atom not in others
        if (
            inside
            and is_free
            and other.unit == 1
            and 1 < other.atom.size < size
            and size % other.atom.size == 0
        ):
            others |= {other.atom: _own(other), **other.companions}
    if len(others) == len(group.companions):
        return None
    times = lcm(*(size // atom.size for atom in others))
    return replace(
        group,
        companions=others,
        grain=group.unit * times,
        members=(*dict.fromkeys((*group.members, *(m for each in others.values() for m in each))),),
    )


def _kind(subject: Subject, group: ChannelGroup) -> object:
    """What groups have in common that the same code makes and reads."""
    parts = []
    for member in group.members:
        module = subject.modules[member.path]
        around = subject.modules.get(member.path.rpartition(".")[0])
        numbers = [
            sorted((n, v) for n, v in m.__dict__.items() if type(v) is int) for m in (module, around) if m
        ]
        shape = tuple(subject.tensors[member.name].shape)
        parts.append(
            (type(module), type(around), str(numbers), member.parameter, member.dimension, member.role, shape)
        )
    return group.size, group.grain, tuple(parts)


def _own(group: ChannelGroup) -> tuple[Member, ...]:
    """The members of the leading atom."""
    others = {member for members in group.companions.values() for member in members}
    return tuple(member for member in group.members if member not in others)
