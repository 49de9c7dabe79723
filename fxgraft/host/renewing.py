"""A host whose layers have other sizes is traced anew, with what has grown in it."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from fxgraft.capture.capture import Capture
from fxgraft.errors import SlotError
from fxgraft.host.insertions import Insertions
from fxgraft.slots.structure import Structure, kind_of
from fxgraft_passes import Phase

if TYPE_CHECKING:
    from fxgraft.host.channels import Example
    from fxgraft.host.host import Host

_OF_A_TRACE = (
    "_regions",
    "_opaque",
    "_left_out",
    "_uncompared",
    "_slot_table",
    "_calls",
    "_runs",
    "_insertions",
    "_stacks",
)


def renew(undo: ExitStack, host: Host, example: Example) -> None:
    """Trace the host anew as it is called in ``example``, and put its grafts where they were.

    Args:
        undo: is given what takes the host back; also where this fails.
        host: the host.
        example: arguments of a call.

    Raises:
        SlotError: there is no such slot any more as one that has a seed.
        TraceError: the call fails.
    """
    running, grafts, structure, phase = host._running, host.grafts(), host.structure, host.phase
    before = {name: host.__dict__[name] for name in _OF_A_TRACE}

    def back() -> None:
        running.enter(Structure(), Phase.ISOLATED, {})
        host.__dict__.update(before)
        running.regions = before["_regions"]
        running.enter(structure, phase, grafts)

    undo.callback(back)
    running.enter(Structure(), Phase.ISOLATED, {})
    with host.compiled.stopped() if host.compiled else nullcontext():
        capture = Capture(host._root, *example, clone=False)
    host._regions, running.regions = capture.regions, capture.regions
    host._opaque, host._left_out = capture.opaque, capture.left_out
    host._uncompared = capture.uncompared
    host._slot_table = host._calls = None
    host._runs, host._insertions, host._stacks = capture.runs, Insertions(capture.regions), None
    renewed = Structure()
    try:
        for placement in structure.placements:
            host.provide(renewed, grafts)  # the regions of inserted blocks, which others may be in
            kind = kind_of(grafts[placement.seed].module)
            placed = replace(placement, slot=host.site(*placement.slot.names), kind=kind)
            renewed = Structure((*renewed.placements, placed))
    except SlotError as error:
        raise SlotError(f"what has grown has no place in the wider host: {error}") from error
    host.provide(renewed, grafts)
    running.prepare(renewed, renewed.phases)
    running.enter(renewed, phase, grafts)
    host._slot_table = host._calls = host._stacks = None  # in the order of what runs now
    if running.compiled is not None:
        _compile_anew(undo, host)


def _compile_anew(undo: ExitStack, host: Host) -> None:
    """What is compiled for other sizes is let go: the next call compiles."""
    running, before = host._running, host._running.compiled
    assert before is not None

    def back() -> None:
        if running.compiled is not None:
            running.compiled.stop()
        running.compiled = before

    undo.callback(back)
    running.compile(before.given, before.granularity, host.grafts())
