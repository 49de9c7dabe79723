"""The keys under which compiled code is shared, and whether what they were made of is still so."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from types import FunctionType

from torch import nn

from fxgraft.capture.fingerprint import Fingerprint
from fxgraft.capture.fingerprint_watch import FingerprintWatch
from fxgraft.capture.identities import Identity
from fxgraft.capture.region import Region
from fxgraft.compiling.units import Unit
from fxgraft.compiling.variants import Key
from fxgraft.slots.structure import Structure
from fxgraft_passes import Graft, Phase
from fxgraft_passes.graft import SEEDS


class Keys:
    """The fingerprints of a host's units, and of the grafts inside of them.

    Args:
        blocks: the units of the traced model.
        regions: its regions, by name.
    """

    def __init__(self, blocks: Iterable[Unit], regions: Mapping[str, Region]):
        self._regions = regions
        self._forwards: dict[str, tuple[weakref.ref[Region], FunctionType]] = {}
        self._blocks = {unit: Fingerprint(unit.module) for unit in blocks}
        self._grown: dict[Unit, Fingerprint] = {}
        self._grafts: dict[str, tuple[nn.Module, Fingerprint]] = {}
        self._watches = [self._watch_blocks(), FingerprintWatch(())]

    def of(self, unit: Unit, local: Structure, phase: Phase) -> Key:
        """The key of a unit's part of a structure in a phase."""
        found = (
            self._blocks.get(unit)
            or self._grown.get(unit)
            or self._grown.setdefault(unit, Fingerprint(unit.module))
        )
        kinds = {name: (graft.code, graft.values) for name, (_, graft) in self._grafts.items()}
        forwards = tuple(self._forward(unit, region) for region in _regions_of(local))
        return Key(found.code, found.values, (local.key_for(kinds), forwards, phase))

    def _forward(self, unit: Unit, region: str) -> Identity:
        """What is generated of a region's own graph, numbers included: equal graphs have one function."""
        name = region if region.startswith(f"{SEEDS}.") else f"{unit.name}.{region}".strip(".")
        region_now, known = self._regions[name], self._forwards.get(name)
        if known is None or known[0]() is not region_now:  # of that name there may have been another seed
            known = weakref.ref(region_now), region_now.forward_for((), Phase.ISOLATED).function
            self._forwards[name] = known
        return Identity(known[1])

    def follow(self, grafts: Mapping[str, Graft], grown: Iterable[Unit]) -> None:
        """From now on these grafts run in units, and these units are grown ones."""
        for name in self._forwards.keys() - self._regions.keys():
            del self._forwards[name]  # of seeds that are gone
        known = self._grafts
        self._grafts = {}
        for name, graft in grafts.items():
            module, found = known.get(name, (None, None))
            if module is not graft.module or found is None:
                found = Fingerprint(graft.module)
            self._grafts[name] = graft.module, found
        self._grown = {unit: self._grown.get(unit) or Fingerprint(unit.module) for unit in grown}
        self._watches[1] = self._watch_seeds()

    def hold(self) -> bool:
        """Whether nothing has changed that compiled code takes for granted. Asked before each call."""
        blocks, seeds = self._watches
        return blocks.holds() and seeds.holds()

    def have_hooks(self) -> bool:
        """Whether a module has a hook."""
        return any(watch.has_hooks for watch in self._watches)

    def renew(self, always: bool = False) -> str:
        """Read anew what has changed, or all of it; return what it was."""
        changed = next((change for watch in self._watches if (change := watch.changed())), "")
        for found in (self._blocks, self._grown):
            for unit, fingerprint in found.items():
                if always or not fingerprint.holds():
                    found[unit] = Fingerprint(unit.module)
        for name, (module, fingerprint) in self._grafts.items():
            if always or not fingerprint.holds():
                self._grafts[name] = module, Fingerprint(module)
        self._watches = [self._watch_blocks(), self._watch_seeds()]
        return changed

    def _watch_blocks(self) -> FingerprintWatch:
        return FingerprintWatch(found.watch for found in self._blocks.values())

    def _watch_seeds(self) -> FingerprintWatch:
        seeds = (*(found for _, found in self._grafts.values()), *self._grown.values())
        return FingerprintWatch(found.watch for found in seeds)


def _regions_of(structure: Structure) -> list[str]:
    """The regions that grafts are in, with those that run as part of them."""
    return [name for region in structure.by_region for name in (region, *structure.merged.get(region, ()))]
