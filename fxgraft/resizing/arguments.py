"""What arguments of deepen and widen name: the blocks to stand behind, and a group of channels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from fxgraft.errors import ChannelError
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.util import validate
from fxgraft_passes.channels.groups import ChannelGroup

At = None | str | Sequence[int]
"""None spreads evenly; ``"start"``, ``"end"``; or the indices of the blocks to stand behind."""


@dataclass(frozen=True)
class BlockPlace:
    """The place of one new block in its stack.

    Attributes:
        index: of the block that it stands next to.
        before: whether it stands in front of that one.
        like: the index of the block that it is a copy of.
    """

    index: int
    before: bool
    like: int


def places(blocks: int, count: int, at: Any, like: Any = None) -> list[BlockPlace]:
    """The places of ``count`` new blocks in a stack of ``blocks``, in running order.

    Raises:
        ValueError: for an invalid count or place.
    """
    count = validate.integer("count", count, 1)
    if isinstance(at, str):
        if at not in ("start", "end"):
            raise _refusal("at", at)
        indices = [0 if at == "start" else blocks - 1] * count
    elif at is None:
        indices = [-(-(k + 1) * blocks // count) - 1 for k in range(count)]
    else:
        indices = _indices("at", at, blocks)
        if len(indices) == 1:
            indices *= count
        if count not in (1, len(indices)):
            raise ValueError(
                f"count: expected {len(indices)}, as many as there are indices in at ({list(at)}), or none; "
                f"got {count}"
            )
        if indices != sorted(indices):
            raise ValueError(f"at: expected indices in running order; got {list(at)}")
    copied = indices if like is None else _indices("like", like, blocks)
    if len(copied) != len(indices):
        raise ValueError(f"like: expected {len(indices)} indices, one for each new block; got {len(copied)}")
    return [BlockPlace(i, at == "start", j) for i, j in zip(indices, copied, strict=True)]


def _indices(name: str, given: Any, blocks: int) -> list[int]:
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or not given:
        raise _refusal(name, given)
    for index in given:
        if isinstance(index, bool) or not isinstance(index, Integral) or not -blocks <= int(index) < blocks:
            raise ValueError(
                f"{name}: expected indices of blocks, 0 to {blocks - 1} (or from the end, -1 to -{blocks}); "
                f"got {index!r}"
            )
    return [int(index) % blocks for index in given]


_EXPECTED = {
    "at": "None (spread evenly), 'start', 'end', or a list of indices of blocks to stand behind",
    "like": "None (those in front), or a list of indices of blocks, one for each new block",
}


def _refusal(name: str, given: Any) -> ValueError:
    return ValueError(f"{name}: expected {_EXPECTED[name]}; got {given!r}")


def group_of(host: Host, group: Any) -> ChannelGroup:
    """The group of that name as the host is now.

    Raises:
        ChannelError: there is none; with the nearest names.
    """
    name = group.name if isinstance(group, ChannelGroup) else group
    channels = engine.untried_channels(host)
    if not isinstance(name, str):
        raise ChannelError(f"group: expected a name, one of host.channels; got {type(group).__name__}")
    if name not in channels:
        near = difflib.get_close_matches(name, channels, n=3, cutoff=0.3) or list(channels)[:3]
        raise ChannelError(
            f"the host has no channels {name!r}; did you mean {', '.join(map(repr, near))}? "
            f"host.channels has all {len(channels)}"
        )
    return engine.channel_group(host, name)
