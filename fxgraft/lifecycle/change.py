"""A change of a host's structure by one swap, as data."""

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
"""The seeds of a change, as data: added, removed, departed, fossilized, blended; and what it is."""

_ACT = "together"


def is_act(names: Names) -> bool:
    """Whether these are the names of an act."""
    return _ACT in names[-1]


@dataclass(frozen=True)
class Addition:
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

    def dry_run(self, undo: ExitStack) -> None:
        """Do it as `carry_out` does, to be undone at once: what is checked there need not be checked here."""

    def carry_out(self, undo: ExitStack) -> None:
        """Do it, once the structure is the new one; callbacks that revert it are added to ``undo``."""


@dataclass(frozen=True)
class Change:
    """What is done to a host's structure in one swap.

    Attributes:
        additions: seeds to go live.
        removals: live seeds to take out.
        departed: names of retired seeds, whose grafts go.
        fossils: seeds that become permanent, with their new placements.
        ramps: seeds that are blended, with their new ramps: those to go live, and fossils to be, among them.
        is_act: whether it is an act, of which nothing is applied where a part of it cannot be.
        growths: what makes the host's own layers larger then, in their order.
    """

    additions: tuple[Addition, ...] = ()
    removals: tuple[Seed, ...] = ()
    departed: tuple[str, ...] = ()
    fossils: tuple[tuple[Seed, Placement], ...] = ()
    ramps: tuple[tuple[Seed, Ramp], ...] = ()
    is_act: bool = False
    growths: tuple[Growing, ...] = ()

    @property
    def moves_grafts(self) -> bool:
        """Whether it leads to another structure."""
        return bool(self.additions or self.removals or self.departed or self.fossils)

    def target(self, structure: Structure) -> Structure:
        """The structure that it makes of ``structure``."""
        for name in (*(seed.name for seed in self.removals), *self.departed):
            structure = structure.without(name)
        for addition in self.additions:
            structure = structure.with_placement(addition.placement, addition.before)
        for _, placement in self.fossils:
            structure = structure.with_placement(placement)
        return structure

    @property
    def names(self) -> Names:
        """The names of its seeds, by what happens to them."""
        return [
            [addition.seed.name for addition in self.additions],
            [seed.name for seed in self.removals],
            list(self.departed),
            [seed.name for seed, _ in self.fossils],
            [seed.name for seed, _ in self.ramps],
            [_ACT] * self.is_act,
        ]

    def only(self, names: Names) -> Change:
        """The part that concerns those seeds; of an act all, or nothing."""
        if self.is_act or is_act(names):
            return self if self.names == names else Change()
        additions, removals, departed, fossils, ramps, _ = names
        return Change(
            additions=tuple(addition for addition in self.additions if addition.seed.name in additions),
            removals=tuple(seed for seed in self.removals if seed.name in removals),
            departed=tuple(name for name in self.departed if name in departed),
            fossils=tuple(item for item in self.fossils if item[0].name in fossils),
            ramps=tuple(item for item in self.ramps if item[0].name in ramps),
        )

    @property
    def parts(self) -> tuple[Change, ...]:
        """The change as several, of one seed each."""
        return (
            *(Change(additions=(addition,)) for addition in self.additions),
            *(Change(removals=(seed,)) for seed in self.removals),
            *(Change(departed=(name,)) for name in self.departed),
            *(Change(fossils=(fossil,)) for fossil in self.fossils),
            *(Change(ramps=(ramp,)) for ramp in self.ramps),
        )
