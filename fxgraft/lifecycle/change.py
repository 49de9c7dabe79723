"""A change of a host's structure: what one swap is to bring, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxgraft.seeds.seed import Seed
from fxgraft.structure import Placement, Structure
from fxgraft_passes import Graft

Names = list[list[str]]
"""The seeds of a change, as data: to be born, to die, departed, to be fossilized."""


@dataclass(frozen=True)
class Birth:
    """A seed that is to go live, with what it needs for that.

    Attributes:
        seed: the seed.
        placement: where it goes.
        graft: its module.
        before: the names of the seeds that stand behind it.
    """

    seed: Seed
    placement: Placement
    graft: Graft
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """What is done to a host's structure in one swap.

    Attributes:
        births: seeds to go live.
        deaths: live seeds to take out.
        departed: names of retired seeds, whose grafts go.
        fossils: seeds that become permanent, with their new placements.
    """

    births: tuple[Birth, ...] = ()
    deaths: tuple[Seed, ...] = ()
    departed: tuple[str, ...] = ()
    fossils: tuple[tuple[Seed, Placement], ...] = ()

    def target(self, structure: Structure) -> Structure:
        """The structure that it makes of ``structure``."""
        for name in (*(seed.name for seed in self.deaths), *self.departed):
            structure = structure.without(name)
        for birth in self.births:
            structure = structure.with_placement(birth.placement, birth.before)
        for _, placement in self.fossils:
            structure = structure.with_placement(placement)
        return structure

    @property
    def names(self) -> Names:
        """Whose change it is."""
        return [
            [birth.seed.name for birth in self.births],
            [seed.name for seed in self.deaths],
            list(self.departed),
            [seed.name for seed, _ in self.fossils],
        ]

    def only(self, names: Sequence[Sequence[str]]) -> Change:
        """What of it is about those seeds."""
        births, deaths, departed, fossils = names
        return Change(
            births=tuple(birth for birth in self.births if birth.seed.name in births),
            deaths=tuple(seed for seed in self.deaths if seed.name in deaths),
            departed=tuple(name for name in self.departed if name in departed),
            fossils=tuple(item for item in self.fossils if item[0].name in fossils),
        )

    @property
    def parts(self) -> tuple[Change, ...]:
        """The change as several, of one seed each."""
        return (
            *(Change(births=(birth,)) for birth in self.births),
            *(Change(deaths=(seed,)) for seed in self.deaths),
            *(Change(departed=(name,)) for name in self.departed),
            *(Change(fossils=(fossil,)) for fossil in self.fossils),
        )
