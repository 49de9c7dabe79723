"""A structure: which grafts a host has, and how each is wired. Immutable, and holds no tensors.

The host swaps one structure for another; nothing is edited in place. What a structure needs to run,
a ``forward`` for each region that has grafts, is generated before the swap and can be thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from fxgraft.capture.region import Wiring
from fxgraft_passes import GraftSpec, Phase, Slot


@dataclass(frozen=True)
class Placement:
    """One seed's place in a structure.

    Attributes:
        seed: the seed's name.
        slot: where it is.
        spec: how it is wired.
        kind: what its module is, for telling structures apart that run the same code.
    """

    seed: str
    slot: Slot = field(hash=False)
    spec: GraftSpec
    kind: str = ""

    @property
    def wiring(self) -> Wiring:
        """The placement without the seed."""
        return Wiring(self.slot.node.name, self.spec)


@dataclass(frozen=True)
class Structure:
    """A set of placements. Make changed ones with `with_placement` and `without`."""

    placements: tuple[Placement, ...] = ()

    def with_placement(self, placement: Placement) -> Structure:
        """This structure with one seed more, or with that seed placed anew."""
        return Structure((*self.without(placement.seed).placements, placement))

    def without(self, seed: str) -> Structure:
        """This structure with one seed less."""
        return Structure(tuple(p for p in self.placements if p.seed != seed))

    @cached_property
    def by_region(self) -> Mapping[str, tuple[Placement, ...]]:
        """Region -> its placements: in the order of the graph, at one node in the order of names."""
        regions: dict[str, list[Placement]] = {}
        for placement in self.placements:
            regions.setdefault(placement.slot.region, []).append(placement)
        return {name: tuple(_ordered(found)) for name, found in sorted(regions.items())}

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for structures that run the same code on modules of the same kind."""
        return tuple(
            (region, tuple((p.wiring, p.kind) for p in placements))
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


def kind_of(module: nn.Module) -> str:
    """What a compiled graph depends on in a seed's module: classes, settings, shapes and dtypes."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    shapes = [(name, tuple(t.shape), str(t.dtype), t.requires_grad) for name, t in tensors]
    return f"{type(module).__module__}.{type(module).__qualname__}:{module!r}:{shapes}"


def _ordered(placements: Iterable[Placement]) -> list[Placement]:
    found = list(placements)
    position = {node: i for i, node in enumerate(found[0].slot.node.graph.nodes)}
    return sorted(found, key=lambda p: (position[p.slot.node], p.seed))
