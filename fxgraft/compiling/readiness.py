"""Which forwards of a structure its units run, and which of those there is code for."""

from __future__ import annotations

from collections.abc import Mapping

from fxgraft.compiling.calls import CallKind
from fxgraft.compiling.keys import Keys
from fxgraft.compiling.units import Unit
from fxgraft.compiling.variants import Variant, Variants
from fxgraft.slots.structure import Structure
from fxgraft_passes import Graft, Phase


class Readiness:
    """The code of a host's units, by structure and phase.

    Args:
        variants: the code.
        keys: what it is found by.

    Attributes:
        variants, keys: as they were given.
        news: counts what may give the compiler process something to do: units that run other code than
            before, calls that had to run uncompiled.
    """

    def __init__(self, variants: Variants, keys: Keys):
        self.variants, self.keys = variants, keys
        self.news = 0

    def variant(self, unit: Unit, local: Structure, phase: Phase) -> Variant:
        """The variant that runs a unit's part of a structure in one phase."""
        key = self.keys.of(unit, local, phase)
        return self.variants.get(key, lambda: f"{unit.name or 'host'} {_label(local)} {phase.value}")

    def peek(self, unit: Unit, local: Structure, phase: Phase) -> Variant | None:
        """That variant, if there is one."""
        return self.variants.peek(self.keys.of(unit, local, phase))

    def phase_in(self, unit: Unit, structure: Structure, phase: Phase, grafts: Mapping[str, Graft]) -> Phase:
        """The phase that a unit runs in while the host is in ``phase``.

        A unit whose seeds are all in one stage needs no forward that tells stages apart; SETTLED, for
        several seeds, is an extra one, that is run only where there is code for it.
        """
        local = unit.local(structure)
        live = [grafts[p.seed] for p in local.placements if p.spec.fossil is None]
        if not live:
            return Phase.ISOLATED
        if phase not in (Phase.BLENDED, Phase.SETTLED):
            return phase
        learning = [bool(graft.learning) for graft in live]
        if all(learning):
            return Phase.ISOLATED
        if any(learning) or (len(live) > 1 and not self.is_there(unit, local, Phase.SETTLED)):
            return Phase.BLENDED
        return Phase.SETTLED

    def phases_of(self, unit: Unit, structure: Structure, grafts: Mapping[str, Graft]) -> tuple[Phase, ...]:
        """The forwards that a unit may run from now on: without those for seeds that learn, where none does.

        No seed comes back into TRAINING.
        """
        local = unit.local(structure)
        live = [grafts[p.seed] for p in local.placements if p.spec.fossil is None]
        if not live or any(bool(graft.learning) for graft in live):
            return local.phases
        return tuple(phase for phase in local.phases if phase is not Phase.ISOLATED)

    def is_there(self, unit: Unit, local: Structure, phase: Phase) -> bool:
        """Whether there is code for every call that was seen."""
        variant = self.peek(unit, local, phase)
        return variant is not None and not variant.given_up and not self.missing(unit, local, phase)

    def missing(self, unit: Unit, local: Structure, phase: Phase) -> list[CallKind]:
        """The kinds of call seen that there is no code for, the latest first."""
        variant = self.peek(unit, local, phase)
        seen = reversed(self.variants.seen(unit))
        return [kind for kind in seen if variant is None or not variant.is_ready(kind)]


def _label(local: Structure) -> str:
    seeds = [f"{p.seed}@{p.slot.name}" for p in local.placements]
    return "+".join(seeds) or "empty"
