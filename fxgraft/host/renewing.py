"""A host whose layers have other sizes is traced anew, with what has grown in it."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from fxgraft.capture.capture import Capture
from fxgraft.errors import SlotError
from fxgraft.host.traced import Traced
from fxgraft.slots.structure import Structure, kind_of
from fxgraft_passes import Phase

if TYPE_CHECKING:
    from fxgraft.host.channels import Example
    from fxgraft.host.host import Host


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
    before = host._traced

    def back() -> None:
        running.enter(Structure(), Phase.ISOLATED, {})
        host._traced, running.regions = before, before.regions
        running.enter(structure, phase, grafts)

    undo.callback(back)
    running.enter(Structure(), Phase.ISOLATED, {})
    with host.compiled.stopped() if host.compiled else nullcontext():
        capture = Capture(host._root, *example, clone=False)
    host._traced, running.regions = Traced.of(capture), capture.regions
    renewed = Structure()
    try:
        for placement in structure.placements:
            host._traced.insert_blocks(
                renewed, grafts
            )  # the regions of inserted blocks, which others may be in
            kind = kind_of(grafts[placement.seed].module)
            placed = replace(placement, slot=host.site(*placement.slot.names), kind=kind)
            renewed = Structure((*renewed.placements, placed))
    except SlotError as error:
        raise SlotError(f"what has grown has no place in the wider host: {error}") from error
    host._traced.insert_blocks(renewed, grafts)
    running.prepare(renewed, renewed.phases)
    running.enter(renewed, phase, grafts)
    host._traced.forget_places()  # they are in the order of what runs now
    host._traced.forget_stacks()
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
