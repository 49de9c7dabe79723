"""Attributes that were set after tracing, so that no call of their module is of the form that was traced."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft_passes import Slot


def changed_attributes(host: Host, slots: Iterable[Slot]) -> list[str]:
    """The conditions that do not hold in the modules that have a seed at one of ``slots``.

    Left out are those that the first call of the model, which is still to come, makes true.
    """
    names = dict.fromkeys(name for slot in slots for name in (slot.region, *slot.merged))
    awaited = engine.awaits_first_call(host)
    return [
        f"in {name or 'the model'}, {what}"
        for name in names
        for what in host.regions[name].changed_attributes
        if awaited.isdisjoint(re.findall(r"\w+", what))
    ]
