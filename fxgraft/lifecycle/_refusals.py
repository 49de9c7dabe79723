"""Changes that are refused, each with the names of the seeds."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from fxgraft.errors import StageError
from fxgraft.host.insertions import path_of
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.slots.structure import Structure


def refuse_blocks_around(seeds: Mapping[str, Seed], removals: Sequence[Seed]) -> None:
    """Raise `StageError` for an inserted block that is to go while a seed that stays is inside of it."""
    for seed in removals:
        if seed.spec.call is None:
            continue
        path = path_of(seed.name)
        inside = [s.name for s in seeds.values() if s not in removals and s.slot.startswith(path)]
        if inside:
            raise StageError(
                f"cannot cull block {seed.name!r}: expected one without seeds in it; it has "
                f"{', '.join(inside)}. Cull those before it, or together with it"
            )


def refuse_in_passing_block(seeds: Mapping[str, Seed], seed: Seed) -> None:
    """Raise `StageError` where a seed is to become permanent in a block that is not."""
    for other in seeds.values():
        is_around = other.spec.call is not None and seed.slot.startswith(path_of(other.name))
        if is_around and other.stage is not Stage.FOSSILIZED:
            raise StageError(
                f"cannot fossilize seed {seed.name!r}: expected it in a block that is permanent; it is "
                f"in {other.name!r}, which is {other.stage.name}. Fossilize that one first"
            )


def refuse_foreign_seeds(
    structure: Structure, seeds: Container[str], departing: Container[str], name: str
) -> None:
    """Raise `StageError` if the host has live grafts of another manager, or one of that name.

    Args:
        structure: of the host.
        seeds: the names of this manager's.
        departing: of those of its that are culled, and whose grafts are still in the graph.
        name: of the seed that is to be germinated.
    """
    for placement in structure.placements:
        if placement.seed in departing and placement.seed != name:
            continue
        is_foreign = placement.spec.fossil is None and placement.seed not in seeds
        if placement.seed == name or is_foreign:
            raise StageError(
                f"cannot germinate {name!r}: the host has a seed {placement.seed!r} of another "
                f"manager (or it is a copy of a host that had). One manager to a host; host.clear() "
                f"takes all out"
            )
