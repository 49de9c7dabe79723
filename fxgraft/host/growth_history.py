"""What the growths of a host's channels say of its seeds, kept true as seeds come and go.

A loaded host grows again in the same order: `Widened.seeds` are the seeds that it has before a growth. So a
name there is always that of the seed that the host has now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from fxgraft.host.channels import Widened
from fxgraft_passes.graft import SEEDS


def without_seeds(names: Collection[str], growths: Sequence[Widened]) -> tuple[Widened, ...]:
    """The growths of a host that has those seeds no more: what grew in them alone is not to grow again."""
    gone = tuple(f"{SEEDS}.{name}." for name in names)
    return tuple(
        replace(
            done,
            numbers=tuple(number for number in done.numbers if not number[0].startswith(gone)),
            seeds=tuple(seed for seed in done.seeds if seed not in names),
        )
        for done in growths
        if not done.group.startswith(gone)
    )


def with_seed(name: str, copied: str | None, growths: Sequence[Widened]) -> tuple[Widened, ...]:
    """The growths of a host that gets a seed.

    Args:
        name: of the seed. Growths that name an earlier seed of this name do not mean it.
        copied: the inserted block (its seed) of which the new one is a copy, with its sizes; None if it is
            a copy of none. It then counts as being as old as that one, and has grown with it.
        growths: until now.
    """
    growths = without_seeds([name], growths)
    return growths if copied is None else tuple(_copied(name, copied, growths))


def _copied(name: str, copied: str, growths: Sequence[Widened]) -> Iterator[Widened]:
    old, new = f"{SEEDS}.{copied}.", f"{SEEDS}.{name}."
    for done in growths:
        if copied not in done.seeds:
            yield done
            continue
        also = tuple((new + p[len(old) :], n, v) for p, n, v in done.numbers if p.startswith(old))
        seeds = (*done.seeds, name)
        if done.group.startswith(old):
            yield replace(done, seeds=seeds)
            yield replace(done, group=new + done.group[len(old) :], numbers=also, seeds=seeds)
        else:
            yield replace(done, numbers=(*done.numbers, *also), seeds=seeds)
