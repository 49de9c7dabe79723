"""What a block returns beside the value that goes on: of an inserted block nobody reads it.

x, aux = block(x)        # total = total + aux: without that of the inserted block
"""

from __future__ import annotations

import operator

from fxgraft.capture.region import Region
from fxgraft.host.host import Host
from fxgraft.telemetry.events import logger
from fxgraft_passes import Call


def warn_of_dropped_outputs(host: Host, stack: str, block: str, call: Call) -> None:
    """Say that more of what a block returns is used: an auxiliary loss, keys and values for a cache.

    Args:
        host: the host.
        stack: the name of the stack, for what is said.
        block: a block of the model in it.
        call: how it is called.
    """
    around = _around(host, block)
    if call.element is None or around is None:
        return
    inside = block[len(around.name) :].lstrip(".")
    used = {
        part.args[1]
        for node in around.base.nodes
        if node.op == "call_module" and node.target == inside
        for part in node.users
        if part.target is operator.getitem and part.users and part.args[1] != call.element
    }
    if used:
        logger.warning(
            "stack %r: the model uses more of what its blocks return than the value that goes on (%s): what "
            "an inserted block returns there is dropped. A sum of auxiliary losses lacks its part, and a "
            "cache of keys and values has none for it, so that the model must not run with one",
            stack,
            ", ".join(f"[{index}]" for index in sorted(used, key=str)),
        )


def _around(host: Host, block: str) -> Region | None:
    """The region whose code calls a block; None where that has no graph."""
    path = block
    while path:
        path = path.rpartition(".")[0]
        if path in host.regions:
            return None if host.regions[path].is_boundary else host.regions[path]
    return None
