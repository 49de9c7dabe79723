"""What may be explored: where, and with what.

    "auto"                                   every slot, every registered blueprint that fits there, and
                                             the channels and stacks that can grow (`widths`, `depths`)
    host.slots.select("blocks.*"), a name,   these slots, likewise
    or several of either
    SEED commands (also as dictionaries)     these, and no others

Two slots that hold the very same tensor (a dropout that did nothing in the example call, a ``view`` of the
same shape) are one place: the first of them stands for both. What cannot be planted is refused at once, by
name; what "auto" would have to leave out is told, each with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fxgraft import blueprints as registered
from fxgraft import commands
from fxgraft.commands import SEED
from fxgraft.errors import BlueprintError, CommandError, SlotError
from fxgraft.explore.cap import Candidate, Cap
from fxgraft.explore.depths import DEEPEN, depth_of, depths
from fxgraft.explore.widths import widths
from fxgraft.host.host import Host
from fxgraft.lifecycle.plan import price
from fxgraft.slots.selection import NO_SLOTS, Slots
from fxgraft_passes import GraftSpec, Slot
from fxgraft_passes.observe import KEY

Choice = str | Slot | Slots | SEED | Mapping[str, Any] | Iterable[Any]
"""What `SeedManager.explore` takes for ``candidates``."""

AUTO = "auto"
FEWER = (32, 16, 8, 4)
"""Hidden units of an MLP, where there is no room for as many as it has by default."""


@dataclass
class Found:
    """The candidates of an exploration.

    Attributes:
        candidates: what is explored.
        left_out: what is not, with the reason.
    """

    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[tuple[SEED, Candidate | None, str]] = field(default_factory=list)


def find(
    host: Host,
    choice: Choice,
    names: Sequence[str] | None = None,
    cap: Mapping[str, int] | None = None,
    flops: int | None = None,
    most: Mapping[str, int] | None = None,
    widens: bool = False,
) -> Found:
    """The candidates that ``choice`` names.

    Args:
        host: where they are to grow.
        choice: see the module.
        names: of the blueprints to take where slots are chosen; all that are registered by default.
        cap: see `Cap`. Where commands are given, all of them are taken.
        flops: of the host's forward pass, where that is known.
        most: what one candidate may have: ``{"parameters": ..., "flops": ..., "memory": ...}``.
        widens: whether "auto" has the channels that can grow, where no blueprints are named.

    Raises:
        SlotError, BlueprintError, CommandError: something that was named is not there, or can never grow.
        TypeError: ``choice`` is something else.
        ValueError: there is no candidate at all.
    """
    found, limit = Found(), Cap.of(cap, host, flops)
    if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
        raise TypeError(f"blueprints: expected names, or None for all; got {names!r}")
    if isinstance(choice, str) and choice == AUTO:
        if not host.slots:
            raise SlotError(NO_SLOTS)
        wider = [(0, one) for one in _wider(host)] if widens and names is None else []
        # After the first candidate of each slot: blocks are large.
        wider += [(1, priced(host, seed)) for seed in depths(host)] if names is None else []
        return _fitting(host, list(host.slots.values()), names, limit, most, wider=wider)
    slots, seeds = _told_apart(host, choice)
    if slots and seeds:
        raise TypeError("candidates: expected slots, or SEED commands; got both")
    if slots:
        return _fitting(host, slots, names, limit, most, named=True)
    for place, seed in enumerate(seeds):
        if not seed.isolated:
            raise ValueError(
                f"candidates[{place}]: expected an isolated seed, which the host does not feel; "
                f"got isolated=False"
            )
        candidate = priced(host, seed)
        if (reason := _too_much(candidate, most)) is None:
            found.candidates.append(candidate)
        else:
            found.left_out.append((seed, candidate, reason))
    if not found.candidates:
        why = found.left_out[0][2] if found.left_out else "expected one at least; got none"
        raise ValueError(f"candidates: nothing could grow: {why}. Name other slots or blueprints")
    return found


def _told_apart(host: Host, choice: Any) -> tuple[list[Slot], list[SEED]]:
    """The slots, or the commands, that are given."""
    if isinstance(choice, Slots):
        return list(choice.values()), []
    if isinstance(choice, Slot):
        return [host.slot(choice.name)], []
    if isinstance(choice, SEED) or (isinstance(choice, Mapping) and "type" in choice):
        return [], [_seed(choice)]
    if isinstance(choice, str):
        is_name = choice in host.slots or not any(sign in choice for sign in "*?")
        return ([host.slot(choice)] if is_name else list(host.slots.select(choice).values())), []
    if isinstance(choice, (Mapping, bytes)) or not isinstance(choice, Iterable):
        raise TypeError(
            f'candidates: expected "auto", slots (host.slots.select(...), names) or SEED commands; '
            f"got {type(choice).__name__}"
        )
    slots: list[Slot] = []
    seeds: list[SEED] = []
    for one in choice:
        more = _told_apart(host, one)
        slots += more[0]
        seeds += more[1]
    return slots, seeds


def _seed(given: SEED | Mapping[str, Any]) -> SEED:
    command = commands.parse(given)
    if not isinstance(command, SEED):
        raise CommandError(f"candidates: expected SEED commands; got {type(command).__name__}")
    return command


def priced(host: Host, seed: SEED) -> Candidate:
    """The candidate of a command. Raises what germinating it would."""
    if seed.blueprint == DEEPEN:
        depth = depth_of(host, seed)
        size = 4 * next(host.host_parameters()).element_size()
        return Candidate(seed, depth.parameters, 0, depth.parameters * size, depth=depth)
    registered.get(seed.blueprint)
    slot = host.site(seed.slot, seed.source)
    spec = GraftSpec(seed.mode or "residual")
    cost = price(host, slot, spec, seed.blueprint, seed.config)
    kept = 3 * slot.shape.numel() * slot.dtype.itemsize
    return Candidate(seed, cost.parameters, cost.flops, 4 * cost.parameters * slot.dtype.itemsize + kept)


def _wider(host: Host) -> list[Candidate]:
    found = []
    for seed, width in widths(host):
        try:
            candidate = priced(host, seed)
        except (SlotError, BlueprintError):  # no branch can stand for these channels
            continue
        found.append(replace(candidate, parameters=width.parameters, width=width))
    return found


def _fitting(
    host: Host,
    slots: Sequence[Slot],
    names: Sequence[str] | None,
    cap: Cap,
    most: Mapping[str, int] | None,
    named: bool = False,
    wider: Sequence[tuple[int, Candidate]] = (),
) -> Found:
    """All that fits at these slots, up to the cap, the smallest of each slot first; and ``wider``."""
    for name in names or ():
        registered.get(name)
    found = Found()
    fitting: list[tuple[int, Candidate]] = []
    for slot, twin in _places(slots):
        here = []
        misfits: list[tuple[SEED, Candidate | None, str]] = []
        for name in names if names is not None else registered.names():
            seed = SEED(slot=slot.name, blueprint=name)
            try:
                candidate = _shrunk(host, priced(host, seed), most)
            except (SlotError, BlueprintError) as error:
                misfits.append((seed, None, str(error)))
                continue
            if not candidate.parameters:
                misfits.append((seed, candidate, "it has no parameters: nothing could be learnt"))
            elif twin is not None:
                found.left_out.append((seed, candidate, f"{twin!r} holds the very same value"))
            else:
                here.append(candidate)
        here.sort(key=lambda candidate: (candidate.parameters, candidate.command.blueprint))
        fitting += enumerate(here)
        if twin is None and not here:
            found.left_out += misfits[:1] if names is None else misfits
            if named and names is None:
                found.left_out[-1] = (misfits[0][0], None, f"no registered blueprint fits: {misfits[0][2]}")
        elif names is not None:
            found.left_out += misfits
    fitting += wider
    fitting.sort(key=lambda ranked: ranked[0])  # stable: in the order of the slots
    for _, candidate in fitting:
        reason = _too_much(candidate, most) or cap.objection(found.candidates, candidate)
        if reason is None:
            found.candidates.append(candidate)
        else:
            found.left_out.append((candidate.command, candidate, reason))
    if not found.candidates:
        why = "; ".join(f"{seed.blueprint} at {seed.slot!r}: {why}" for seed, _, why in found.left_out[:3])
        raise ValueError(
            f"candidates: nothing that is registered can grow there: {why}. Name other slots or blueprints"
        )
    return found


def _shrunk(host: Host, candidate: Candidate, most: Mapping[str, int] | None) -> Candidate:
    """With fewer hidden units, where it is too much as the blueprint makes it by itself."""
    if candidate.command.blueprint == "mlp" and _too_much(candidate, most):
        for hidden in FEWER:
            smaller = priced(host, replace(candidate.command, config={"hidden": hidden}))
            if _too_much(smaller, most) is None:
                return smaller
    return candidate


def _too_much(candidate: Candidate, most: Mapping[str, int] | None) -> str | None:
    """Why one candidate by itself is too much; None where it is not."""
    for name, number in (most or {}).items():
        if name not in ("parameters", "flops", "memory"):
            raise ValueError(f"most: expected parameters, flops or memory; got {name!r}")
        if (given := getattr(candidate, name)) > number:
            return f"it has {given:,} {_SAID[name]}; one may have {number:,} at most"
    return None


_SAID = {"parameters": "parameters", "flops": "FLOPs", "memory": "bytes"}


def _places(slots: Sequence[Slot]) -> list[tuple[Slot, str | None]]:
    """Each slot once, with the name of an earlier one that holds the very same value, or None."""
    known: dict[object, str] = {}
    places: list[tuple[Slot, str | None]] = []
    for slot in {slot.name: slot for slot in slots}.values():
        seen = slot.node.meta.get(KEY)
        value = (seen.memory, tuple(slot.shape), slot.dtype) if seen is not None else slot.name
        # Where the value is written into later, what stands behind that is another one.
        is_new = slot.copy or slot.reader is not None or seen is None or seen.memory < 0
        places.append((slot, None if is_new else known.get(value)))
        if not is_new:
            known.setdefault(value, slot.name)
    return places
