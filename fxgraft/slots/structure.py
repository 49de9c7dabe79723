"""A structure: which grafts a host has, and how each is wired. Immutable, and holds no tensors.

The host swaps one structure for another; nothing is edited in place. What a structure needs to run,
a ``forward`` for each region that has grafts, is generated before the swap and can be thrown away.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch.fx as fx
from torch import nn

from fxgraft.capture.fingerprint import Fingerprint
from fxgraft.capture.merge import local_name
from fxgraft.capture.region import Wiring, block_of
from fxgraft_passes import GraftSpec, Phase, Slot
from fxgraft_passes.errors import SlotError
from fxgraft_passes.graft import SEEDS
from fxgraft_passes.metadata import metadata

Value = tuple[fx.Node, fx.Node | None]
"""A value that seeds may stand behind: its node, and the one reader that it is meant for, if there is one."""


@dataclass(frozen=True)
class Placement:
    """One seed's place in a structure.

    Attributes:
        seed: the seed's name.
        slot: where it is.
        spec: how it is wired.
        kind: what its module is, for telling structures apart that run the same code; hashable, and of
            this process only: a copy of a placement has none.
    """

    seed: str
    slot: Slot = field(hash=False)
    spec: GraftSpec
    kind: object = ""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "kind": ""}

    @property
    def values(self) -> frozenset[Value]:
        """The values that the seed stands behind."""
        return values_at(self.slot)

    @property
    def wiring(self) -> Wiring:
        """The placement without the seed, in its slot's own region."""
        return self.wired_in(self.slot.region)

    def wired_in(self, region: str) -> Wiring:
        """The placement without the seed, in the region whose graph has it."""
        slot, source = self.slot, self.slot.source
        others = tuple(local_name(slot.region, node.name, region) for node in slot.others)
        return Wiring(
            _local(slot, region), self.spec, None if source is None else _local(source, region), others
        )

    def seen_from(self, prefix: str) -> Placement:
        """The placement with names of regions relative to the module ``prefix``."""
        slot = replace(self.slot, region=relative(self.slot.region, prefix))
        merged = tuple(relative(name, prefix) for name in slot.merged)
        source = slot.source and replace(slot.source, region=relative(slot.source.region, prefix))
        return replace(self, slot=replace(slot, source=source, merged=merged))


@dataclass(frozen=True)
class Structure:
    """Placements; those at one value compose in this order. Make changed ones by the methods below."""

    placements: tuple[Placement, ...] = ()

    def with_placement(self, placement: Placement, before: Container[str] = ()) -> Structure:
        """This structure with one seed more, or with that seed wired anew, where it is.

        Args:
            placement: of the seed.
            before: a new one stands before the first of these seeds; behind all, where there is none.
        """
        found = list(self.placements)
        for i, other in enumerate(found):
            if other.seed == placement.seed:
                found[i] = placement
                return Structure(tuple(found))
        first = next((i for i, other in enumerate(found) if other.seed in before), len(found))
        found.insert(first, placement)
        return Structure(tuple(found))

    def without(self, seed: str) -> Structure:
        """This structure with one seed less."""
        return Structure(tuple(p for p in self.placements if p.seed != seed))

    @cached_property
    def merged(self) -> Mapping[str, tuple[str, ...]]:
        """Region -> the regions that run as part of its graph, for branches between regions; sorted."""
        groups: dict[str, set[str]] = {}
        for root, *others in (p.slot.merged for p in self.placements if p.slot.merged):
            group = {root, *others}
            for known in [known for known, members in groups.items() if members & group]:
                members = groups.pop(known)
                root = root if known in group else known  # both are trees: one root is in the other
                group |= members
            groups[root] = group
        return {root: tuple(sorted(members - {root})) for root, members in sorted(groups.items())}

    def runs_in(self, placement: Placement) -> str:
        """The region whose graph has a placement: its slot's own, or the one that this is merged into."""
        region = placement.slot.region
        return next((root for root, parts in self.merged.items() if region in parts), region)

    @cached_property
    def _homes(self) -> Mapping[str, str]:
        """Inserted block -> the region whose graph calls it."""
        return {f"{SEEDS}.{p.seed}.module": p.slot.region for p in self.placements if p.spec.call}

    def home(self, region: str) -> str:
        """The region of the model in whose call a region runs: itself, or that around an inserted block."""
        while (block := block_of(region)) in self._homes:
            region = self._homes[block]
        return region

    def in_model(self, path: str) -> str:
        """What something in an inserted block is in the block of the model at which that stands."""
        while (block := block_of(path)) in self._homes:
            path = self._homes[block] + path[len(block) :]
        return path

    def refuse_split_blocks(self) -> None:
        """Raise `SlotError` for a block behind a module that runs as a part of the graph around it."""
        for p in self.placements:
            if p.spec.call is not None and self.runs_in(p) != p.slot.region:
                branches = [q.seed for q in self.placements if p.slot.region in q.slot.merged]
                raise SlotError(
                    f"block {p.seed!r} stands at {p.slot.region!r}: expected a module that is called by "
                    f"itself; with a branch into or out of it ({', '.join(branches)}) it runs as a part of "
                    f"{self.runs_in(p)!r}"
                )

    @cached_property
    def by_region(self) -> Mapping[str, tuple[Placement, ...]]:
        """Region -> the placements in its graph, in its order; at one value in that of `placements`."""
        regions: dict[str, list[Placement]] = {}
        for placement in self.placements:
            regions.setdefault(self.runs_in(placement), []).append(placement)
        return {name: tuple(_ordered(found)) for name, found in sorted(regions.items())}

    def wirings(self, region: str) -> tuple[Wiring, ...]:
        """The grafts in the graph of ``region``, in the order in which they compose."""
        return tuple(p.wired_in(region) for p in self.by_region.get(region, ()))

    def within(self, prefix: str) -> Structure:
        """The part that runs inside the module ``prefix``, as seen from it."""
        inside = [p for p in self.placements if is_within(self.home(self.runs_in(p)), prefix)]
        return Structure(tuple(p.seen_from(prefix) for p in inside))

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for structures that run the same code on modules of the same kind."""
        return self.key_for({})

    def key_for(self, kinds: Mapping[str, object]) -> tuple[object, ...]:
        """The key where some seeds are of another kind than when they were placed."""
        return tuple(
            (region, tuple((p.wired_in(region), kinds.get(p.seed, p.kind)) for p in placements))
            for region, placements in self.by_region.items()
        )

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The forwards that serve every mixture of stages: those that are compiled before it is live.

        With nothing but fossils there is one. A single live seed is in TRAINING or it is not; only of
        several can some be, and then a forward is needed that tells them apart.
        """
        live = sum(p.spec.fossil is None for p in self.placements)
        blending = Phase.SETTLED if live == 1 else Phase.BLENDED
        return (Phase.ISOLATED, blending) if live else (Phase.ISOLATED,)


def kind_of(module: nn.Module) -> object:
    """Equal for seeds' modules that run the same compiled code: see `fxgraft.capture.fingerprint`."""
    found = Fingerprint(module)
    return found.code, found.values


def _local(slot: Slot, region: str) -> str:
    """What a `Wiring` calls the place of a slot."""
    name = local_name(slot.region, slot.node.name, region)
    return name if slot.reader is None else f"{name}->{local_name(slot.region, slot.reader.name, region)}"


def is_within(region: str, prefix: str) -> bool:
    """Whether a region is the module ``prefix``, or inside of it."""
    return not prefix or region == prefix or region.startswith(f"{prefix}.")


def relative(region: str, prefix: str) -> str:
    """The name of a region as seen from the module ``prefix``, which it is in; in inserted blocks its own."""
    if region.startswith(f"{SEEDS}."):
        return region
    return region[len(prefix) :].lstrip(".")


def values_at(slot: Slot) -> frozenset[Value]:
    """The values that a seed at ``slot`` stands behind; several for all calls of a module."""
    return frozenset((node, slot.reader) for node in (slot.node, *slot.others))


def _ordered(placements: Sequence[Placement]) -> list[Placement]:
    """In the order of the graph. Not of the placements: else equal structures would have several forms."""
    waiting = sorted(placements, key=_in_the_graph)
    if not any(p.slot.others for p in waiting):
        return waiting
    # A seed behind all calls of a module shares some of its values with seeds behind one of the calls.
    position = {p.seed: i for i, p in enumerate(placements)}
    found: list[Placement] = []
    while waiting:
        following = next(
            p
            for p in waiting
            if not any(q.values & p.values and position[q.seed] < position[p.seed] for q in waiting)
        )
        waiting.remove(following)
        found.append(following)
    return found


def _in_the_graph(placement: Placement) -> tuple[int, int]:
    """When a value is passed in a run. An edge comes behind the slot that it leads away from."""
    slot = placement.slot
    reader = metadata(slot.reader).get("observation") if slot.reader is not None else None
    return metadata(slot.node)["observation"].order, -1 if reader is None else reader.order
