"""Attributes that were set after tracing, where the code that runs has what they were.

Code with seeds in it is generated from a graph, in which a number of the module's is a constant.
"""

from __future__ import annotations

from collections.abc import Iterable

from fxgraft.host.host import Host
from fxgraft_passes import Slot


def outdated(host: Host, slots: Iterable[Slot]) -> list[str]:
    """What was set in the modules that have a seed at one of ``slots``, in words."""
    names = dict.fromkeys(name for slot in slots for name in (slot.region, *slot.merged))
    return [f"in {name or 'the model'}, {what}" for name in names for what in host.regions[name].outdated]
