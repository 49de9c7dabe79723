"""Branches: a seed that reads the value of an earlier slot than the one that it is blended in at.

Where both slots are in one region its graph has all that it takes. Otherwise the regions from both up
to the one around them run as one graph (`fxgraft.capture.merge`), as long as the branch lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch.fx as fx
from torch import nn

from fxgraft.capture.merge import merge
from fxgraft.capture.region import Region
from fxgraft.errors import SlotError
from fxgraft.slots.structure import is_within
from fxgraft_passes import Slot
from fxgraft_passes.metadata import metadata
from fxgraft_passes.observe import observation_of


class Calls:
    """Which region calls which. Looks through all regions once; their graphs do not change."""

    def __init__(self, regions: Mapping[str, Region]):
        self._regions = regions
        self._callers: dict[nn.Module, list[tuple[str, fx.Node]]] = {}
        for name, region in regions.items():
            for node in region.base.find_nodes(op="call_module"):
                called = region.module.get_submodule(str(node.target))
                self._callers.setdefault(called, []).append((name, node))

    def branch(self, source: Slot, slot: Slot) -> Slot:
        """``slot`` for a seed that reads ``source``. Raises `SlotError` with the reason if there is none."""
        pair = f"source {source.name!r} of slot {slot.name!r}"
        if source.others or slot.others:
            raise SlotError(f"{pair}: expected single places; one of them is all calls of a module")
        if _when(source) >= _when(slot):
            raise SlotError(f"{pair}: expected a slot that is computed earlier; it comes later")
        if source.device != slot.device:
            raise SlotError(f"{pair}: expected one device; got {source.device} and {slot.device}")
        if source.region == slot.region:
            return replace(slot, source=source)
        try:
            merged = self._between(source.region, slot.region)
            merge(self._regions[merged[0]], [self._regions[name] for name in merged[1:]])
        except SlotError as error:
            raise SlotError(
                f"{pair}: they are in the regions {source.region!r} and {slot.region!r}, which cannot run "
                f"as one graph: {error}. Choose source and slot in one region, or in regions that are joined"
            ) from error
        return replace(slot, source=source, merged=merged)

    def _between(self, one: str, other: str) -> tuple[str, ...]:
        """The regions from both up to the nearest that is around both, this one first."""
        mine, theirs = list(self._upwards(one, other)), list(self._upwards(other, one))
        root = next((name for name in mine if name in theirs), None)
        if root is None:
            stuck = next(chain[-1] for chain in (mine, theirs) if not self._is_around(chain[-1], one, other))
            raise SlotError(f"{stuck!r} is called by code that has no graph (see host.rejected)")
        parts = {*mine[: mine.index(root)], *theirs[: theirs.index(root)]}
        for name in parts:
            if not is_within(name, root):
                raise SlotError(f"{name!r} is no part of {root!r}, which calls it")
        return (root, *sorted(parts))

    def _upwards(self, region: str, towards: str) -> Iterable[str]:
        """A region, the region that calls it, and so on up to the first that is around ``towards``."""
        yield region
        while not is_within(towards, region):
            callers = self._callers.get(self._regions[region].module, [])
            if not callers:
                return
            if _calls(self._regions[region]) != metadata(callers[0][1])["observation"].calls:
                raise SlotError(f"{region!r} is called several times, and the value is another in each call")
            region = callers[0][0]
            yield region

    def _is_around(self, region: str, *others: str) -> bool:
        return all(is_within(other, region) for other in others)


def _when(slot: Slot) -> tuple[int, bool]:
    """Sorts places by when they are passed in a run: an edge just before its reader."""
    return metadata(slot.reader or slot.node)["observation"].order, slot.reader is None


def _calls(region: Region) -> int:
    """How often a region ran in the example."""
    return max(seen.calls for node in region.base.nodes if (seen := observation_of(node)) is not None)
