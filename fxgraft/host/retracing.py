"""A host whose layers have other sizes is traced again, with what has grown in it."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fxgraft.capture.capture import Capture
from fxgraft.capture.earlier_trace import EarlierTrace
from fxgraft.errors import SlotError
from fxgraft.host._observing import observe
from fxgraft.host._traced import Traced
from fxgraft.slots.structure import Structure, kind_of
from fxgraft_passes import Phase

if TYPE_CHECKING:
    from fxgraft.compiling.compiled import CompiledHost
    from fxgraft.host.channels import Example
    from fxgraft.host.host import Host


@dataclass(frozen=True)
class Retrace:
    """A trace of a host in other sizes, and its compiled form then, to be used when it has these sizes again.

    Attributes:
        capture: the trace.
        compiled: the compiled form; None where the host is not compiled.
    """

    capture: Capture
    compiled: CompiledHost | None


def retrace(undo: ExitStack, host: Host, example: Example, known: Retrace | None = None) -> Retrace:
    """Trace the host anew as it is called in ``example``, and put its grafts where they were.

    Modules of which the graph is still right are not traced: see `fxgraft.capture.earlier_trace`.

    Args:
        undo: gets the callbacks that restore the host; also where this fails.
        host: the host.
        example: arguments of a call.
        known: what an earlier call with these sizes returned, which was reverted: it is not done again.

    Raises:
        SlotError: there is no such slot any more as one that has a seed.
        TraceError: the call fails.
    """
    running, grafts, structure, phase = host._running, host.grafts(), host.structure, host.phase
    before = host._traced
    of_blocks = [(graft, graft.regions) for graft in grafts.values()]

    def back() -> None:
        running.enter(Structure(), Phase.ISOLATED, {})
        host._traced, running.regions = before, before.regions
        for graft, regions in of_blocks:
            graft.regions = regions
        running.enter(structure, phase, grafts)

    undo.callback(back)
    running.enter(Structure(), Phase.ISOLATED, {})
    if known is not None:
        capture = known.capture
    else:
        with host.compiled.stopped() if host.compiled else nullcontext():
            earlier = EarlierTrace(before.regions, before.opaque, before.uncompared, host._external_state)
            capture = Capture(host._root, *example, clone=False, earlier=earlier)
    host._traced, running.regions = Traced.of(capture), capture.regions
    host._traced.remove_blocks(Structure())  # of those blocks there are graphs in the sizes of now
    for graft, _ in of_blocks:
        graft.regions = None
    renewed = Structure()
    try:
        for placement in structure.placements:
            # The regions of inserted blocks come first: others may be in them.
            host._traced.insert_blocks(renewed, grafts)
            kind = kind_of(grafts[placement.seed].module)
            placed = replace(placement, slot=host.site(*placement.slot.names), kind=kind)
            renewed = Structure((*renewed.placements, placed))
    except SlotError as error:
        raise SlotError(
            f"what has grown has no place in the wider host: {error}. Cull or fuse it before widen()"
        ) from error
    host._traced.insert_blocks(renewed, grafts)
    running.prepare(renewed, renewed.phases)
    running.enter(renewed, phase, grafts)
    observe(host)
    host._traced.forget_places()  # they are in the order of what runs now
    host._traced.forget_stacks()
    if running.compiled is not None:
        _compile_anew(undo, host, None if known is None else known.compiled)
    return Retrace(capture, running.compiled)


def _compile_anew(undo: ExitStack, host: Host, known: CompiledHost | None) -> None:
    """Drop what is compiled for other sizes: the next call compiles what ``known`` has not."""
    running, before, call = host._running, host._running.compiled, host._running.call
    assert before is not None

    def back() -> None:
        if running.compiled is not None:
            running.compiled.stop()
        running.compiled, running.call = before, call

    undo.callback(back)
    if known is not None:
        running.take(known, host.grafts())
        return
    running.compile(before.given, before.granularity, host.grafts())
    assert running.compiled is not None
    running.compiled.inherit_calls(before)
