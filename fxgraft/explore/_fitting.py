"""What fits at which slot: every registered blueprint, the channels that can grow, up to a cap.

Two slots that hold the very same tensor (a dropout that did nothing in the example call, a ``view`` of the
same shape) are one place: the first of them stands for both. What has to be left out is told, each with the
reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fxgraft import blueprints as registered
from fxgraft.commands import SEED
from fxgraft.errors import BlueprintError, SlotError
from fxgraft.explore._cap import Candidate, Cap
from fxgraft.explore._depths import DEEPEN, depth_of
from fxgraft.explore._widths import widths
from fxgraft.host.host import Host
from fxgraft.lifecycle.plan import price
from fxgraft_passes import GraftSpec, Slot
from fxgraft_passes.observe import KEY

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


def priced(host: Host, seed: SEED) -> Candidate:
    """The candidate of a command. Raises what germinating it would."""
    if seed.blueprint == DEEPEN:
        depth = depth_of(host, seed)
        # Beside a parameter, its gradient and two moments of the optimizer.
        size = 4 * next((p.element_size() for p in host.host_parameters()), 0)
        return Candidate(seed, depth.parameters, 0, depth.parameters * size, depth=depth)
    registered.get(seed.blueprint)
    slot = host.site(seed.slot, seed.source)
    spec = GraftSpec(seed.mode or "residual")
    cost = price(host, slot, spec, seed.blueprint, seed.config)
    kept = 3 * slot.shape.numel() * slot.dtype.itemsize
    return Candidate(seed, cost.parameters, cost.flops, 4 * cost.parameters * slot.dtype.itemsize + kept)


def wider(host: Host) -> list[Candidate]:
    """The channels that can grow, each as the branch that stands for them while it is tried."""
    found = []
    for seed, width in widths(host):
        try:
            candidate = priced(host, seed)
        except (SlotError, BlueprintError):  # no branch can stand for these channels
            continue
        found.append(replace(candidate, parameters=width.parameters, width=width))
    return found


def fitting(
    host: Host,
    slots: Sequence[Slot],
    names: Sequence[str] | None,
    cap: Cap,
    most: Mapping[str, int] | None,
    named: bool = False,
    more: Sequence[tuple[int, Candidate]] = (),
) -> Found:
    """All that fits at these slots, up to the cap, the smallest of each slot first; and ``more``, by rank."""
    for name in names or ():
        registered.get(name)
    found = Found()
    ranked: list[tuple[int, Candidate]] = []
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
        ranked += enumerate(here)
        if twin is None and not here:
            found.left_out += misfits[:1] if names is None else misfits
            if named and names is None:
                found.left_out[-1] = (misfits[0][0], None, f"no registered blueprint fits: {misfits[0][2]}")
        elif names is not None:
            found.left_out += misfits
    ranked += more
    ranked.sort(key=lambda one: one[0])  # stable: in the order of the slots
    for _, candidate in ranked:
        reason = too_much(candidate, most) or cap.objection(found.candidates, candidate)
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
    if candidate.command.blueprint == "mlp" and too_much(candidate, most):
        for hidden in FEWER:
            smaller = priced(host, replace(candidate.command, config={"hidden": hidden}))
            if too_much(smaller, most) is None:
                return smaller
    return candidate


def too_much(candidate: Candidate, most: Mapping[str, int] | None) -> str | None:
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
