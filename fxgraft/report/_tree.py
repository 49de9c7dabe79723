"""The final structure: modules, the slots in them, and the seeds at the slots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fxgraft.report.run import Lane, Run
from fxgraft.seeds.stage import Stage


@dataclass
class TreeNode:
    """A slot and what lives there; ``shape`` is that of the example, empty where it is not known."""

    name: str
    shape: str
    seeds: list[Lane] = field(default_factory=list)


@dataclass
class Module:
    """A module by its qualified name, with its own slots and the modules inside of it."""

    name: str
    places: list[TreeNode] = field(default_factory=list)
    inside: dict[str, Module] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """How many live here or further inside."""
        return sum(len(place.seeds) for place in self.places) + sum(m.seeds for m in self.inside.values())

    @property
    def slots(self) -> int:
        """How many are here or further inside."""
        return len(self.places) + sum(module.slots for module in self.inside.values())


def structure(run: Run) -> Module:
    """The host as a tree; the root has the empty name. Seeds that were culled are not there."""
    root = Module("")
    places: dict[str, TreeNode] = {}
    for slot in run.slots:
        shape = " x ".join(map(str, slot["shape"]))
        places[slot["name"]] = place = TreeNode(slot["name"], f"{slot['dtype']} {shape}")
        _around(root, slot["name"]).places.append(place)
    for lane in _there(run.lanes.values()):
        if lane.slot not in places:  # an edge, an element: one of the places without a name in host.slots
            places[lane.slot] = place = TreeNode(lane.slot, "")
            _around(root, lane.slot.split("->")[-1]).places.append(place)
        places[lane.slot].seeds.append(lane)
    for place in places.values():
        place.seeds.sort(key=lambda lane: lane.name)  # the order in which they run
    return root


def _there(lanes: Iterable[Lane]) -> list[Lane]:
    return [lane for lane in lanes if lane.stage not in (Stage.DORMANT, Stage.GERMINATED, Stage.CULLED)]


def _around(root: Module, slot: str) -> Module:
    """The module that a slot is in, made where it is not there yet."""
    module = root
    for part in slot.split(".")[:-1][:MAX_DEPTH]:
        name = f"{module.name}.{part}" if module.name else part
        module = module.inside.setdefault(part, Module(name))
    return module


MAX_DEPTH = 50
"""Modules further inside are shown in that one: a name in a log may be anything."""
