"""Which group of channels somebody means."""

from __future__ import annotations

import difflib
from typing import Any

from fxgraft.errors import ChannelError
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft_passes.channels.groups import ChannelGroup


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
