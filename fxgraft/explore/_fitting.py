"""What fits at which slot: every registered blueprint, the channels that can grow, up to a cap.

A seed has to fit the sizes that a value has with other inputs, too, where they are known (`_other_sizes`).

Two slots that hold the very same tensor (a dropout that did nothing in the example call, a ``view`` of the
same shape) count as one place, that of the first. What is left out is in the table, with the
reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from fxgraft import blueprints as registered
from fxgraft.commands import SEED
from fxgraft.errors import BlueprintError, SlotError
from fxgraft.explore._cap import Candidate, Cap, Grows
from fxgraft.explore._depths import DEEPEN, depth_of
from fxgraft.explore._example_run import BlockFlops
from fxgraft.explore._other_sizes import other_shapes
from fxgraft.explore._widths import Surrogate, Width, surrogates
from fxgraft.host.host import Host
from fxgraft.lifecycle.plan import price
from fxgraft_passes import GraftSpec, Slot
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.graft import SEEDS
from fxgraft_passes.metadata import metadata

FEWER = (32, 16, 8, 4)
"""Hidden units of an MLP, where there is no room for as many as it has by default."""


class NothingCanGrowError(ValueError):
    """There is no candidate at all."""


@dataclass
class Found:
    """The candidates of an exploration.

    Attributes:
        candidates: what is explored.
        left_out: what is not, with the reason.
    """

    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[tuple[SEED, Candidate | None, str]] = field(default_factory=list)


def priced(
    host: Host, seed: SEED, blocks: BlockFlops | None = None, shapes: Collection[torch.Size] = ()
) -> Candidate:
    """The candidate of a command. Raises what germinating it would.

    Args:
        host: where it is to grow.
        seed: the command.
        blocks: FLOPs of blocks; None: they are not known.
        shapes: that the value has, beside the example's, and that the seed has to take.
    """
    if seed.blueprint == DEEPEN:
        depth = depth_of(host, seed)
        # Beside a parameter, its gradient and two moments of the optimizer.
        size = 4 * next((p.element_size() for p in host.host_parameters()), 0)
        flops = None if blocks is None else blocks.of(depth.block)
        return Candidate(seed, depth.parameters, flops, depth.parameters * size, depth=depth)
    registered.get(seed.blueprint)
    slot = host.site(seed.slot, seed.source)
    spec = GraftSpec(seed.mode or "residual")
    cost = price(host, slot, spec, seed.blueprint, seed.config, shapes)
    kept = 3 * slot.shape.numel() * slot.dtype.itemsize
    return Candidate(seed, cost.parameters, cost.flops, 4 * cost.parameters * slot.dtype.itemsize + kept)


def wider(host: Host, most: Mapping[str, int] | None) -> Found:
    """The channels that can grow, each as the branch that is tried in their place."""
    found = Found()
    for group, surrogate in surrogates(host):
        try:
            if not isinstance(surrogate, str):
                found.candidates.append(_as_wide_as_fits(host, surrogate, most))
                continue
            reason = surrogate
        except (SlotError, BlueprintError) as error:
            reason = str(error)
        seed, width = SEED(slot=group.name, blueprint="widen"), _width(host, group, group.grain)
        untried = f"no branch can stand for it: {reason}. manager.widen({group.name!r}, ...) grows it untried"
        found.left_out.append((seed, Candidate(seed, width.parameters, None, 0, width=width), untried))
    return found


def _width(host: Host, group: ChannelGroup, by: int) -> Width:
    tensors = (getattr(host.get_submodule(member.path), member.parameter) for member in group.members)
    grown = [tensor.numel() // group.size for tensor in tensors if isinstance(tensor, nn.Parameter)]
    return Width(group.name, by, by * sum(grown))


def _as_wide_as_fits(host: Host, surrogate: Surrogate, most: Mapping[str, int] | None) -> Candidate:
    """With the largest number of channels that is not too much; with the smallest where each is."""
    for by in surrogate.numbers():
        width = _width(host, surrogate.group, by)
        candidate = replace(priced(host, surrogate.command(by)), parameters=width.parameters, width=width)
        if too_much(candidate, most) is None:
            break
    return candidate


def fitting(
    host: Host,
    slots: Sequence[Slot],
    names: Sequence[str] | None,
    cap: Cap,
    most: Mapping[str, int] | None,
    named: bool = False,
    more: Sequence[tuple[int, Candidate]] = (),
    exclude: Sequence[Grows] = (),
) -> Found:
    """All that fits at these slots, up to the cap, the smallest of each slot first; and ``more``, by rank."""
    for name in names or ():
        registered.get(name)
    found = Found()
    ranked: list[tuple[int, Candidate]] = []
    shapes = other_shapes(host, slots)
    for slot, twin in _places(slots):
        here = []
        misfits: list[tuple[SEED, Candidate | None, str]] = []
        for name in names if names is not None else registered.names():
            seed = SEED(slot=slot.name, blueprint=name)
            try:
                candidate = _shrunk(host, priced(host, seed, shapes=shapes[slot.name]), most)
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
        reason = excluded(candidate, exclude) or cannot_learn(candidate) or too_much(candidate, most)
        reason = reason or cap.objection(found.candidates, candidate)
        if reason is None:
            found.candidates.append(candidate)
        else:
            found.left_out.append((candidate.command, candidate, reason))
    if not found.candidates:
        why = "; ".join(f"{seed.blueprint} at {seed.slot!r}: {why}" for seed, _, why in found.left_out[:3])
        raise NothingCanGrowError(
            f"candidates: nothing that is registered can grow there: {why}. Name other slots or blueprints, "
            f"or allow more"
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


def excluded(candidate: Candidate, exclude: Sequence[Grows]) -> str | None:
    """Why one candidate is not tried again; None where it is not excluded."""
    return "it was excluded" if candidate.grows in exclude else None


def too_much(candidate: Candidate, most: Mapping[str, int] | None) -> str | None:
    """Why one candidate by itself is too much; None where it is not."""
    for name, number in (most or {}).items():
        if (given := getattr(candidate, name) or 0) > number:
            return f"it has {given:,} {_SAID[name]}; one may have {number:,} at most"
    return None


def cannot_learn(candidate: Candidate) -> str | None:
    """Why a block could learn nothing; None where it can."""
    if candidate.depth is None or candidate.parameters:
        return None
    return f"all parameters of {candidate.depth.block!r} are frozen: a copy of it would learn nothing"


_SAID = {"parameters": "parameters", "flops": "FLOPs", "memory": "bytes"}


def _places(slots: Sequence[Slot]) -> list[tuple[Slot, str | None]]:
    """Each slot once, with the name of an earlier one that holds the very same value, or None."""
    known: dict[object, str] = {}
    places: list[tuple[Slot, str | None]] = []
    for slot in {slot.name: slot for slot in slots}.values():
        seen = metadata(slot.node).get("observation")
        # The graph of an inserted block is that of the block it was copied from, its memory another one.
        inserted = slot.region.split(".")[:2] if slot.region.startswith(f"{SEEDS}.") else ()
        value: object = slot.name
        if seen is not None:  # the parts of a chunk share their memory, and are others
            value = (*inserted, seen.memory, seen.offset, seen.strides, tuple(slot.shape), slot.dtype)
        # Where the value is written into later, what stands behind that is another one.
        is_new = slot.copy or slot.reader is not None or seen is None or seen.memory < 0
        places.append((slot, None if is_new else known.get(value)))
        if not is_new:
            known.setdefault(value, slot.name)
    return places
