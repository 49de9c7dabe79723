"""A change of a host's structure: what one swap is to bring, as data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from fxgraft.schedules import Ramp
from fxgraft.seeds.seed import Seed
from fxgraft.slots.structure import Placement, Structure
from fxgraft_passes import Graft

Names = list[list[str]]
"""The seeds of a change, as data: to be born, to die, departed, to be fossilized, blended; and what it is."""

_WHOLE = "together"


def is_whole(names: Names) -> bool:
    """Whether they are those of an act."""
    return _WHOLE in names[-1]


@dataclass(frozen=True)
class Birth:
    """A seed that is to go live, with what it needs for that.

    Attributes:
        seed: the seed.
        placement: where it goes.
        graft: its module.
        before: the names of the seeds that stand behind it.
        like: parameters of it -> those whose optimizer state they begin with.
    """

    seed: Seed
    placement: Placement
    graft: Graft
    before: tuple[str, ...] = ()
    like: Mapping[nn.Parameter, nn.Parameter] = field(default_factory=dict)


class Growing(Protocol):
    """What makes the host's own layers larger, as a part of a change."""

    @property
    def words(self) -> str:
        """What it does, in words."""

    def plan(self) -> bool:
        """Find out, in a step of its own, what serves `carry_out` later; return whether there was any.

        Called where nothing else of the change comes before it. Changes nothing.
        """

    def rehearse(self, undo: ExitStack) -> None:
        """Do it for a moment, as `carry_out` does: what is checked there need not be checked here."""

    def carry_out(self, undo: ExitStack) -> None:
        """Do it, once the structure is the new one; ``undo`` is given what takes it back."""


@dataclass(frozen=True)
class Change:
    """What is done to a host's structure in one swap.

    Attributes:
        births: seeds to go live.
        deaths: live seeds to take out.
        departed: names of retired seeds, whose grafts go.
        fossils: seeds that become permanent, with their new placements.
        ramps: seeds that are blended, with their new ramps: those to go live, and fossils to be, among them.
        whole: whether it is an act, of which nothing lands where a part of it cannot.
        growths: what makes the host's own layers larger then, in their order.
    """

    births: tuple[Birth, ...] = ()
    deaths: tuple[Seed, ...] = ()
    departed: tuple[str, ...] = ()
    fossils: tuple[tuple[Seed, Placement], ...] = ()
    ramps: tuple[tuple[Seed, Ramp], ...] = ()
    whole: bool = False
    growths: tuple[Growing, ...] = ()

    @property
    def moves_grafts(self) -> bool:
        """Whether it leads to another structure."""
        return bool(self.births or self.deaths or self.departed or self.fossils)

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
            [seed.name for seed, _ in self.ramps],
            [_WHOLE] * self.whole,
        ]

    def only(self, names: Names) -> Change:
        """What of it is about those seeds; of an act all, or nothing."""
        if self.whole or is_whole(names):
            return self if self.names == names else Change()
        births, deaths, departed, fossils, ramps, _ = names
        return Change(
            births=tuple(birth for birth in self.births if birth.seed.name in births),
            deaths=tuple(seed for seed in self.deaths if seed.name in deaths),
            departed=tuple(name for name in self.departed if name in departed),
            fossils=tuple(item for item in self.fossils if item[0].name in fossils),
            ramps=tuple(item for item in self.ramps if item[0].name in ramps),
        )

    @property
    def parts(self) -> tuple[Change, ...]:
        """The change as several, of one seed each."""
        return (
            *(Change(births=(birth,)) for birth in self.births),
            *(Change(deaths=(seed,)) for seed in self.deaths),
            *(Change(departed=(name,)) for name in self.departed),
            *(Change(fossils=(fossil,)) for fossil in self.fossils),
            *(Change(ramps=(ramp,)) for ramp in self.ramps),
        )
