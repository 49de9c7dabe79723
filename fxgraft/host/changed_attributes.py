"""Attributes that were set after tracing, so that no call of their module is of the form that was traced."""

from __future__ import annotations

from collections.abc import Iterable

from fxgraft.host.host import Host
from fxgraft_passes import Slot


def changed_attributes(host: Host, slots: Iterable[Slot]) -> list[str]:
    """The conditions that do not hold in the modules that have a seed at one of ``slots``."""
    names = dict.fromkeys(name for slot in slots for name in (slot.region, *slot.merged))
    return [
        f"in {name or 'the model'}, {what}"
        for name in names
        for what in host.regions[name].changed_attributes
    ]
