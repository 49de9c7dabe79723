"""Which forwards of a structure its units run, and which of those there is code for."""

from __future__ import annotations

from collections.abc import Mapping

from fxgraft.compiling._calls import CallKind
from fxgraft.compiling._keys import Keys
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
        changes: counts what may give the compiler process something to do: units that run other code than
            before, calls that had to run uncompiled.
    """

    def __init__(self, variants: Variants, keys: Keys):
        self.variants, self.keys = variants, keys
        self.changes = 0

    def variant(self, unit: Unit, local: Structure, phase: Phase) -> Variant:
        """The variant that runs a unit's part of a structure in one phase."""
        key = self.keys.of(unit, local, phase)
        return self.variants.get(key, lambda: f"{unit.name or 'host'} {_label(local)} {phase.value}")

    def peek(self, unit: Unit, local: Structure, phase: Phase) -> Variant | None:
        """That variant, if there is one."""
        return self.variants.peek(self.keys.of(unit, local, phase))

    def forwards_of(self, unit: Unit, local: Structure) -> tuple[Phase, ...]:
        """The forwards of a unit that serve every mixture of stages.

        By block, one of them is enough for blocks that are tried in it: where they are spread unevenly, there
        are two kinds of unit with new ones, and each would need two.
        """
        return (Phase.BLENDED,) if _is_tried_in(unit, local) else local.phases

    def phase_in(self, unit: Unit, structure: Structure, phase: Phase, grafts: Mapping[str, Graft]) -> Phase:
        """The phase that a unit runs in while the host is in ``phase``.

        A unit whose seeds are all in one stage needs no forward that tells stages apart; SETTLED, where
        `forwards_of` has it not, is an extra one, that is run only where there is code for it.
        """
        local = unit.local(structure)
        learning = _learning(local, grafts)
        if not learning:
            return Phase.ISOLATED
        forwards = self.forwards_of(unit, local)
        if phase not in (Phase.BLENDED, Phase.SETTLED):
            return phase if phase in forwards else Phase.BLENDED
        if all(learning) and Phase.ISOLATED in forwards:
            return Phase.ISOLATED
        if any(learning) or (Phase.SETTLED not in forwards and not self.is_there(unit, local, Phase.SETTLED)):
            return Phase.BLENDED
        return Phase.SETTLED

    def phases_of(self, unit: Unit, structure: Structure, grafts: Mapping[str, Graft]) -> tuple[Phase, ...]:
        """The forwards that a unit may run from now on: without those for seeds that learn, where none does.

        No seed comes back into TRAINING.
        """
        local = unit.local(structure)
        learning, forwards = _learning(local, grafts), self.forwards_of(unit, local)
        if not learning or any(learning):
            return forwards
        return tuple(phase for phase in forwards if phase is not Phase.ISOLATED)

    def gains_by_settling(self, unit: Unit, structure: Structure, grafts: Mapping[str, Graft]) -> bool:
        """Whether an extra forward without the objectives would serve a unit from now on."""
        local = unit.local(structure)
        learning = _learning(local, grafts)
        return bool(learning) and not any(learning) and Phase.SETTLED not in self.forwards_of(unit, local)

    def is_there(self, unit: Unit, local: Structure, phase: Phase) -> bool:
        """Whether there is code for every call that was seen."""
        variant = self.peek(unit, local, phase)
        return variant is not None and not variant.given_up and not self.missing(unit, local, phase)

    def missing(self, unit: Unit, local: Structure, phase: Phase) -> list[CallKind]:
        """The kinds of call seen that there is no code for, the latest first."""
        variant = self.peek(unit, local, phase)
        seen = reversed(self.variants.seen(unit))
        return [kind for kind in seen if variant is None or not variant.is_ready(kind)]


def _learning(local: Structure, grafts: Mapping[str, Graft]) -> list[bool]:
    """Of each seed that is no fossil, whether it is in TRAINING."""
    return [bool(grafts[p.seed].learning) for p in local.placements if p.spec.fossil is None]


def _is_tried_in(unit: Unit, local: Structure) -> bool:
    """Whether blocks that are no fossils yet stand in a unit that is a block."""
    return bool(unit.name) and any(p.spec.call and p.spec.fossil is None for p in local.placements)


def _label(local: Structure) -> str:
    seeds = [f"{p.seed}@{p.slot.name}" for p in local.placements]
    return "+".join(seeds) or "empty"
