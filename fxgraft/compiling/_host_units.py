"""The units of one host: those of the model, and those of seeds that stand between them."""

from __future__ import annotations

from collections.abc import Container, Mapping

from torch import nn

from fxgraft.compiling.units import Unit, units_in, units_of
from fxgraft.slots.structure import Placement, Structure
from fxgraft_passes import Graft


class HostUnits:
    """What is compiled as a whole.

    Args:
        root: the traced model.
        granularity: see `fxgraft.compiling.units`.

    Attributes:
        blocks: the units of the model.
    """

    def __init__(self, root: nn.Module, granularity: str):
        self.blocks = units_of(root, granularity)
        self._kinds = {unit.kind for unit in self.blocks}
        self._grown: dict[str, tuple[nn.Module, list[Unit]]] = {}

    @property
    def all(self) -> list[Unit]:
        """The units of the model, then those of seeds between them."""
        return [*self.blocks, *self.of_seeds]

    @property
    def of_seeds(self) -> list[Unit]:
        """The units of seeds between blocks."""
        return [unit for _, units in self._grown.values() for unit in units]

    @property
    def eager(self) -> tuple[str, ...]:
        """The seeds between blocks that have no modules inside: they run uncompiled."""
        return tuple(seed for seed, (_, units) in self._grown.items() if not units)

    def grow(self, structure: Structure, grafts: Mapping[str, Graft]) -> list[tuple[Unit, Placement]]:
        """Find the units of seeds that stand between blocks; return those that are new."""
        found = []
        for placement in structure.placements:
            name, region = placement.seed, structure.home(structure.runs_in(placement))
            if name not in grafts or any(unit.holds(region) for unit in self.blocks):
                continue
            module, known = grafts[name].module, self._grown.get(name)
            if known is None or known[0] is not module:
                self._grown[name] = module, units_in(name, module, self._kinds)
                found += [(unit, placement) for unit in self._grown[name][1]]
        return found

    def forget_all_but(self, stay: Container[str]) -> list[Unit]:
        """Forget the units of seeds that do not ``stay``; return them."""
        gone = [name for name in self._grown if name not in stay]
        return [unit for name in gone for unit in self._grown.pop(name)[1]]

    def touched(self, *structures: Structure) -> list[Unit]:
        """The units that have a graft in one of the structures, or are one."""
        regions = [structure.home(region) for structure in structures for region in structure.by_region]
        seeds = {placement.seed for structure in structures for placement in structure.placements}
        grown = [unit for seed, (_, units) in self._grown.items() if seed in seeds for unit in units]
        return [*(unit for unit in self.blocks if any(map(unit.holds, regions))), *grown]
