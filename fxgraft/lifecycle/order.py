"""The order of the seeds at one slot: that of germination, or where ``before`` and ``after`` say.

One order of all seeds of a manager holds all of it: the seeds at a slot stand as they follow each other
there. Names say nothing of it, nor does when a seed that was prepared in the background went live.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxgraft.errors import StageError
from fxgraft.host.host import Host
from fxgraft.seeds.seed import Seed
from fxgraft.slots.structure import values_at
from fxgraft_passes import Slot


def place(
    host: Host, seeds: Mapping[str, Seed], slot: Slot, before: str | None = None, after: str | None = None
) -> str | None:
    """The name of the seed among ``seeds`` that a new one at ``slot`` is to be put before; None: behind all.

    Args:
        host: where they are.
        seeds: in their order.
        slot: of the new seed.
        before: the seed that it stands directly before.
        after: the seed that it stands behind: directly, where there is no ``before``.

    Raises:
        StageError: there is no such seed at the slot, or they stand the other way.
    """
    for argument, name in (("before", before), ("after", after)):
        if name is not None:
            _check(argument, name, host, seeds, slot)
    names = list(seeds)
    if after is None:
        return before
    behind = names[names.index(after) + 1 :]
    if before is not None:
        if before not in behind:
            raise StageError(
                f"cannot germinate at slot {slot.name!r} before {before!r} and after {after!r}: expected "
                f"two seeds that stand in this order; {before!r} does not stand behind {after!r}"
            )
        return before
    return behind[0] if behind else None


def behind(seeds: Mapping[str, Seed], seed: str, before: str | None) -> tuple[str, ...]:
    """The names of the seeds behind ``seed``; of one that is not there yet, as if put before ``before``."""
    names = list(seeds)
    if seed in seeds:
        return tuple(names[names.index(seed) + 1 :])
    return tuple(names[names.index(before) :]) if before is not None else ()


def inserted(seeds: Mapping[str, Seed], seed: Seed, before: Sequence[str]) -> dict[str, Seed]:
    """``seeds`` with one more: before the first of those names, or behind all."""
    found: dict[str, Seed] = {}
    for name, other in seeds.items():
        if name in before:
            found.setdefault(seed.name, seed)
        found[name] = other
    found.setdefault(seed.name, seed)
    return found


def _check(argument: str, name: str, host: Host, seeds: Mapping[str, Seed], slot: Slot) -> None:
    at = [other.name for other in seeds.values() if _shares_a_value(host, other, slot)]
    if not isinstance(name, str) or name not in at:
        known = seeds.get(name) if isinstance(name, str) else None
        given = f"it is at slot {known.slot!r}" if known is not None else "there is no such seed"
        raise StageError(
            f"{argument}: expected the name of a seed at slot {slot.name!r} ({', '.join(at) or 'none there'})"
            f"; got {name!r}: {given}"
        )


def _shares_a_value(host: Host, seed: Seed, slot: Slot) -> bool:
    return bool(values_at(host.site(seed.slot, seed.source)) & values_at(slot))
