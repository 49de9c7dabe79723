"""What a trace found in a model, and the places that follow from it and from the structure of the host."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxgraft.capture.capture import Capture
from fxgraft.capture.region import Region, slot_table
from fxgraft.errors import SlotError
from fxgraft.host.insertions import Insertions, orders
from fxgraft.host.stacks import Stacks
from fxgraft.slots.branching import Calls
from fxgraft.slots.places import ANOTHER, place
from fxgraft.slots.selection import NO_SLOTS, Slots
from fxgraft.slots.structure import Structure
from fxgraft_passes import Graft, Slot


@dataclass
class Traced:
    """The outcome of one trace.

    Attributes:
        regions: qualified module name -> region; those of inserted blocks come and go.
        opaque: modules whose code has no graph -> why.
        left_out: modules that are called from code without a graph, and whose results are no slots -> why.
        uncompared: modules whose graph was not compared with their code -> why.
        runs: in which order the modules of containers ran.
    """

    regions: dict[str, Region]
    opaque: Mapping[str, str]
    left_out: Mapping[str, str]
    uncompared: Any
    runs: Any

    def __post_init__(self) -> None:
        self._insertions = Insertions(self.regions)
        self._slots: Slots | None = None
        self._calls: Calls | None = None
        self._stacks: Stacks | None = None

    @classmethod
    def of(cls, capture: Capture) -> Traced:
        """What ``capture`` found."""
        return cls(capture.regions, capture.opaque, capture.left_out, capture.uncompared, capture.runs)

    @property
    def rejected(self) -> dict[str, str]:
        """Places that are no slots -> why; modules that could not be traced -> why."""
        nodes = {name: why for r in self.regions.values() for name, why in r.rejected.items()}
        return {**nodes, **self.left_out, **self.opaque}

    # Places

    def slots(self, structure: Structure) -> Slots:
        """As `Host.slots`."""
        if self._slots is None:
            table = slot_table(self.regions.values(), orders(structure, self.regions))
            self._slots = Slots(table, self.regions, self.rejected)
        return self._slots

    def slot(self, name: str, structure: Structure) -> Slot:
        """As `Host.slot`."""
        if not isinstance(name, str):
            raise SlotError(f"slot: expected a name, one of host.slots; got {_describe_given(name)}")
        slots = self.slots(structure)
        if name in slots:
            return slots[name]
        if (found := place(name, slots, self.regions)) is not None:
            return found
        if (reason := self.rejected.get(name)) is not None:
            raise SlotError(f"{name!r} is no slot: it {reason}. {ANOTHER}")
        if not slots:
            raise SlotError(NO_SLOTS)
        near = difflib.get_close_matches(name, slots, n=3, cutoff=0.3) or list(slots)[:3]
        raise SlotError(
            f"the host has no slot {name!r}; did you mean {', '.join(map(repr, near))}? "
            f"host.slots has all {len(slots)}"
        )

    def branch(self, source: Slot, slot: Slot) -> Slot:
        """The slot for a seed that reads an earlier one."""
        if self._calls is None:
            self._calls = Calls(self.regions)
        return self._calls.branch(source, slot)

    def stacks(self, root: nn.Module, structure: Structure) -> Stacks:
        """As `Host.stacks`."""
        if self._stacks is None:
            bare = {**self.left_out, **self.opaque}
            self._stacks = Stacks(root, self.regions, self.runs, bare, structure)
        return self._stacks

    # The structure changes

    def forget_places(self) -> None:
        """Places stand in another order now, or are others."""
        self._slots = self._calls = None

    def forget_stacks(self) -> bool:
        """The blocks may have changed; return whether `stacks` was read before."""
        before, self._stacks = self._stacks, None
        return before is not None

    def insert_blocks(self, structure: Structure, grafts: Mapping[str, Graft]) -> None:
        """Add the regions in inserted blocks of ``structure``; nothing that runs is touched."""
        if self._insertions.ensure_regions(structure, grafts):
            self.forget_places()

    @property
    def unseen_blocks(self) -> set[str]:
        """The inserted blocks of whose sizes nothing is known: they are not those of their graphs."""
        return self._insertions.unseen

    def remove_blocks(self, structure: Structure) -> None:
        """Drop the regions in blocks that ``structure`` does not have."""
        if self._insertions.drop_absent(structure):
            self.forget_places()

    def __getstate__(self) -> dict[str, Any]:
        # Places belong to the graphs of this one: a copy finds its own.
        return {**self.__dict__, "_slots": None, "_calls": None, "_stacks": None, "_insertions": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._insertions = Insertions(self.regions)


def _describe_given(given: object) -> str:
    """A given name for messages; of a `Slot` its own."""
    own = getattr(given, "name", None)
    return f"a {type(given).__name__}, whose name is {own!r}" if own else repr(given)
