"""Swap one structure for another on a host, as one step of a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.slots.structure import Structure
from fxgraft.util.interrupts import interruptible
from fxgraft_passes import Graft, Phase


def swap(
    undo: ExitStack,
    host: Host,
    structure: Structure,
    phase: Phase,
    new: Mapping[str, Graft],
    warm_up: bool = True,
) -> None:
    """Make ``host`` run ``structure``; all that it needs is made (and compiled) before it is live.

    Args:
        undo: gets the callbacks that restore the host.
        host: the host.
        structure: the structure to run.
        phase: the forward to run first.
        new: the grafts that the host does not have yet, by the names of their seeds.
        warm_up: whether to compile what is missing.
    """
    have, before = host.grafts(), host.structure
    undo.callback(engine.set_structure, host, host.structure, host.phase, have)
    # Back first, with what they had: a culled seed's average is not made anew.
    for copy in host._links.followers:
        undo.callback(engine.set_structure, copy, copy.structure, copy.phase, copy.grafts())
    grafts = {p.seed: (have | dict(new))[p.seed] for p in structure.placements}
    with interruptible():
        engine.prepare(host, structure, structure.phases)
    engine.set_structure(host, structure, phase, grafts)
    if warm_up:
        with interruptible():
            engine.warm_up(host, before)


def phase_for(seeds: Iterable[Seed]) -> Phase:
    """The forward that fits the stages of the live seeds: the cheapest that is right for all."""
    stages = [seed.stage for seed in seeds if seed.is_live]
    if all(stage is Stage.TRAINING for stage in stages):
        return Phase.ISOLATED
    return Phase.BLENDED if Stage.TRAINING in stages else Phase.SETTLED


def follow_stages(host: Host, seeds: Iterable[Seed]) -> None:
    """Run the forward that fits the stages now; all of them exist already."""
    phase = phase_for(seeds)
    if host.phase is not phase or host.compiled is not None:  # whose units follow their own seeds
        engine.set_structure(host, host.structure, phase, host.grafts())
