"""Inserted blocks as places like any others: regions and slots in them.

An inserted block is a copy of the block that it stands behind in class, so the graphs of that one are right
for it. They are copied, with the names ``_seeds.<seed>.module...``, which are those of its weights. Where one
of the two has grown wider alone, the sizes that are known in them are wrong: `fxgraft.host._observing` looks
again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from fxgraft.capture.region import Region, block_of
from fxgraft.slots.structure import Placement, Structure
from fxgraft_passes import Graft
from fxgraft_passes.base import copy_graph
from fxgraft_passes.graft import SEEDS
from fxgraft_passes.metadata import metadata

Order = tuple[float, int, int]


def path_of(seed: str) -> str:
    """The qualified name of an inserted block."""
    return f"{SEEDS}.{seed}.module"


def seed_of(block: str) -> str:
    """The seed of an inserted block, by its qualified name."""
    return block.split(".")[1]


def regions_within(name: str, regions: Mapping[str, Region]) -> dict[str, Region]:
    """The region of a module, and those inside of it."""
    return {n: r for n, r in regions.items() if n == name or n.startswith(f"{name}.")}


def copied(block: str, module: nn.Module, seed: str, regions: Mapping[str, Region]) -> dict[str, Region]:
    """The regions of an inserted block.

    Args:
        block: the name of the module of whose class it is.
        module: the inserted block.
        seed: its name.
        regions: of the host.
    """
    found = {}
    for name, region in regions_within(block, regions).items():
        path = name[len(block) :]
        own = module.get_submodule(path.lstrip("."))
        form = copy.copy(region.form)
        found[path_of(seed) + path] = Region(path_of(seed) + path, own, form, copy_graph(region.base))
    return found


class Insertions:
    """The regions of the blocks that are inserted in a host. Lives beside its table of regions, and keeps it.

    Args:
        regions: of the host: regions of inserted blocks come and go there.

    Attributes:
        unseen: the inserted blocks (their seeds) of other sizes than that of which they have the graphs.
    """

    def __init__(self, regions: dict[str, Region]):
        self._regions = regions
        self.unseen: set[str] = set()
        self._inserted = {name for name in regions if name.startswith(f"{SEEDS}.")}

    def ensure_regions(self, structure: Structure, grafts: Mapping[str, Graft]) -> bool:
        """Add the regions of all blocks of ``structure``; return whether there are new ones."""
        added = False
        for placement in structure.placements:
            if placement.spec.call is None:
                continue
            graft, path = grafts[placement.seed], path_of(placement.seed)
            known = self._regions.get(path)
            if known is not None and known.module is graft.module:
                continue
            if graft.regions is None or graft.regions[path].module is not graft.module:
                block = placement.slot.region
                # With the graft they come back as they were, where a change is reverted.
                graft.regions = copied(block, graft.module, placement.seed, self._regions)
                if _shapes(self._regions[block].module) != _shapes(graft.module):
                    self.unseen.add(placement.seed)
            self._regions.update(graft.regions)
            self._inserted.update(graft.regions)
            added = True
        return added

    def drop_absent(self, structure: Structure) -> bool:
        """Drop the regions of blocks that are not in ``structure``; return whether there were any."""
        stay = {path_of(p.seed) for p in structure.placements if p.spec.call is not None}
        gone = [name for name in self._inserted if block_of(name) not in stay]
        for name in gone:
            self._inserted.remove(name)
            self._regions.pop(name, None)
        return bool(gone)


def orders(structure: Structure, regions: Mapping[str, Region]) -> dict[str, tuple[float, int]]:
    """When inserted blocks run: name of the block -> the node of the model before it, its position there."""
    found: dict[str, tuple[float, int]] = {}
    for number, placement in enumerate(structure.placements):
        if placement.spec.call is not None:
            found[path_of(placement.seed)] = _turn(placement, regions, found), number
    return found


def _turn(
    placement: Placement, regions: Mapping[str, Region], known: Mapping[str, tuple[float, int]]
) -> float:
    region = placement.slot.region
    if region.startswith(f"{SEEDS}."):
        return known[block_of(region)][0] if block_of(region) in known else 0.0
    inside = regions_within(region, regions).values()
    nodes = [node for part in inside for node in part.base.nodes if "observation" in metadata(node)]
    seen = [metadata(node)["observation"].order for node in nodes]
    own = [node for node in nodes if node.op != "placeholder"]
    first = min((metadata(node)["observation"].order for node in own), default=0)
    last = max(seen, default=0)
    assert placement.spec.call is not None
    return first - 0.5 if placement.spec.call.before else last + 0.5


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in module.state_dict(keep_vars=True).items()]
