"""What may be explored: where, and with what.

    "auto"                                   every slot, every registered blueprint that fits there, and
                                             the channels and stacks that can grow (`_widths`, `_depths`)
    host.slots.select("blocks.*"), a name,   these slots, likewise
    or several of either
    SEED commands (also as dict or JSON)     these, and no others

What cannot germinate is refused at once, by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fxgraft import commands
from fxgraft.commands import DEEPEN, SEED, WIDEN
from fxgraft.errors import CommandError, SlotError
from fxgraft.explore._cap import Cap, Grows, limits
from fxgraft.explore._depths import depths
from fxgraft.explore._example_run import BlockFlops
from fxgraft.explore._fitting import (
    Found,
    NothingCanGrowError,
    cannot_learn,
    excluded,
    fitting,
    priced,
    too_much,
    wider,
)
from fxgraft.explore.table import Row
from fxgraft.host.host import Host
from fxgraft.slots.selection import NO_SLOTS, Slots
from fxgraft_passes import Slot

Choice = str | Slot | Slots | SEED | Mapping[str, Any] | Iterable[Any]
"""What `SeedManager.explore` takes for ``candidates``."""

AUTO = "auto"


def find(
    host: Host,
    choice: Choice,
    names: Sequence[str] | None = None,
    cap: Mapping[str, int] | None = None,
    flops: int | None = None,
    most: Mapping[str, int] | None = None,
    widens: bool = False,
    exclude: Sequence[Grows] = (),
) -> Found:
    """The candidates that ``choice`` names.

    Args:
        host: where they are to grow.
        choice: see the module.
        names: of the blueprints to take where slots are chosen; all that are registered by default.
        cap: see `Cap`. Of commands all are taken, but for what ``cap`` itself has no room for.
        flops: of the host's forward pass, where that is known.
        most: what one candidate may have: ``{"parameters": ..., "flops": ..., "memory": ...}``.
        widens: whether "auto" has the channels that can grow, where no blueprints are named.
        exclude: what is left out: commands that rows of an earlier exploration have.

    Raises:
        SlotError, BlueprintError, CommandError: something that was named is not there, or can never grow.
        TypeError: ``choice`` is something else.
        ValueError: there is no candidate at all.
    """
    found, limit, blocks = Found(), Cap.of(cap, host, flops), BlockFlops(host)
    limits("most", most, ("parameters", "flops", "memory"), 0)
    if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
        raise TypeError(f"blueprints: expected names, or None for all; got {names!r}")
    if names is not None and not names:
        raise ValueError(f"blueprints: expected one name at least, or None for all; got {names!r}")
    if isinstance(choice, str) and choice == AUTO:
        if not host.slots:
            raise SlotError(NO_SLOTS)
        wide = wider(host, most) if widens and names is None else Found()
        more = [(0, one) for one in wide.candidates]
        # After the first candidate of each slot: blocks are large.
        more += [(1, priced(host, seed, blocks)) for seed in depths(host)] if names is None else []
        found = fitting(host, list(host.slots.values()), names, limit, most, more=more, exclude=exclude)
        found.left_out += wide.left_out
        return found
    slots, seeds = _classified(host, choice)
    if slots and seeds:
        raise TypeError("candidates: expected slots, or SEED commands; got both")
    if slots:
        return fitting(host, slots, names, limit, most, named=True, exclude=exclude)
    limit = Cap.only(cap)
    for place, seed in enumerate(seeds):
        if not seed.isolated:
            raise ValueError(
                f"candidates[{place}]: expected an isolated seed, which the host does not feel; "
                f"got isolated=False"
            )
        candidate = priced(host, seed, blocks)
        reason = excluded(candidate, exclude) or cannot_learn(candidate) or too_much(candidate, most)
        if (reason := reason or limit.objection(found.candidates, candidate)) is None:
            found.candidates.append(candidate)
        else:
            found.left_out.append((seed, candidate, reason))
    if not found.candidates:
        why = found.left_out[0][2] if found.left_out else "expected one at least; got none"
        raise NothingCanGrowError(
            f"candidates: nothing could grow: {why}. Name other slots or blueprints, or allow more"
        )
    return found


def _classified(host: Host, choice: Any) -> tuple[list[Slot], list[SEED]]:
    """The slots, or the commands, that are given."""
    if isinstance(choice, Slots):
        return list(choice.values()), []
    if isinstance(choice, Slot):
        return [host.slot(choice.name)], []
    is_json = isinstance(choice, str) and choice.lstrip().startswith("{")
    if isinstance(choice, SEED) or is_json or (isinstance(choice, Mapping) and "type" in choice):
        return [], [_seed(choice)]
    if isinstance(choice, str):
        is_name = choice in host.slots or not any(sign in choice for sign in "*?")
        return ([host.slot(choice)] if is_name else list(host.slots.select(choice).values())), []
    if isinstance(choice, (Mapping, bytes)) or not isinstance(choice, Iterable):
        raise TypeError(
            f'candidates: expected "auto", slots (host.slots.select(...), names) or SEED commands; '
            f"got {type(choice).__name__}{_advice(choice)}"
        )
    if isinstance(choice, (set, frozenset)):  # whose order is another one in each process
        choice = sorted(choice, key=str)
    slots: list[Slot] = []
    seeds: list[SEED] = []
    for one in choice:
        more = _classified(host, one)
        slots += more[0]
        seeds += more[1]
    return slots, seeds


def _advice(choice: object) -> str:
    """What to give instead of something that is close to a candidate; empty for anything else."""
    if isinstance(choice, WIDEN | DEEPEN):
        return '. "auto" tries channels and blocks; manager.handle(command) grows these at once'
    if isinstance(choice, Row):
        return ". A row has its command in row.command"
    if isinstance(choice, Mapping):
        return ' without "type", which a command has: {"type": "SEED", "slot": ..., "blueprint": ...}'
    return ""


def _seed(given: SEED | Mapping[str, Any] | str) -> SEED:
    command = commands.parse(given)
    if not isinstance(command, SEED):
        raise CommandError(f"candidates: expected SEED commands; got {type(command).__name__}")
    return replace(command, id=None)  # by which it would be carried out once only
