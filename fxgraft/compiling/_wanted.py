"""The code that the compiler process is to make for a host."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fxgraft.compiling._calls import CallKind, merge
from fxgraft.compiling._host_units import HostUnits
from fxgraft.compiling._readiness import Readiness
from fxgraft.compiling._running_unit import RunningUnit
from fxgraft.compiling.job import CompileTask
from fxgraft.compiling.units import Unit
from fxgraft.slots.structure import Structure
from fxgraft_passes import Graft, Phase


class WantedCode:
    """The code that there is none of yet.

    Args:
        options: of ``torch.compile``.
        units: of the host.
        code: that there is.
        running: the units as they run.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        units: HostUnits,
        code: Readiness,
        running: Mapping[Unit, RunningUnit],
    ):
        self._merges = options.get("dynamic") is not False
        self._units, self._code, self._running = units, code, running

    def for_change(
        self, structure: Structure, before: Structure, grafts: Mapping[str, Graft], moves: bool = False
    ) -> list[CompileTask]:
        """What is missing for ``structure`` in the units where it is not ``before``; urgent ones first.

        Args:
            structure: to be prepared.
            before: what runs.
            grafts: the seeds' of ``structure``, in the stages in which it goes live.
            moves: whether stages change as it goes live: then it is not known which forward runs first.
        """
        for unit in self._units.touched(structure):
            if unit in self._units.of_seeds and not self._code.variants.seen(unit):
                # Nobody knows its calls.
                self._code.variant(unit, unit.local(structure), Phase.ISOLATED).helped = True
        return self._missing_in(self._units.touched(structure, before), structure, grafts, moves)

    def for_all(self, structure: Structure, grafts: Mapping[str, Graft]) -> list[CompileTask]:
        """What is missing for a structure that runs, in all units; urgent ones first."""
        return self._missing_in(self._units.all, structure, grafts)

    def _missing_in(
        self, units: Iterable[Unit], structure: Structure, grafts: Mapping[str, Graft], moves: bool = False
    ) -> list[CompileTask]:
        tasks, first = [], set()
        for unit in units:
            local = unit.local(structure)
            runs_first = self._code.phase_in(unit, structure, Phase.BLENDED, grafts)
            every = self._code.forwards_of(unit, local)
            for phase in every if moves else self._code.phases_of(unit, structure, grafts):
                found = self._tasks(unit, local, phase, self._code.missing(unit, local, phase))
                tasks += found
                first |= {(task.variant, task.kind) for task in found if moves or phase is runs_first}
        return _by_urgency(_distinct(tasks), first)

    def by_calls(self) -> list[CompileTask]:
        """What calls of late had to do without."""
        tasks = []
        for state in self._running.values():
            if wanted := state.variant.wanted:
                kinds = [*wanted, *(kind for kind, _ in state.variant.artifacts)]
                tasks += self._tasks(state.unit, state.local, state.phase, kinds)
        return _distinct(tasks)

    def settled(self, structure: Structure, grafts: Mapping[str, Graft]) -> list[CompileTask]:
        """The extra forwards that save the objectives, for units none of whose seeds learns now."""
        tasks = []
        for unit in self._units.touched(structure):
            if self._code.gains_by_settling(unit, structure, grafts):
                local = unit.local(structure)
                missing = self._code.missing(unit, local, Phase.SETTLED)
                tasks += self._tasks(unit, local, Phase.SETTLED, missing)
        return [replace(task, is_extra=True) for task in _distinct(tasks) if not task.variant.given_up]

    def of_forwards(self, forwards: Sequence[tuple[Unit, Structure, Phase]]) -> list[CompileTask]:
        """What is missing of these forwards."""
        return _distinct(task for part in forwards for task in self._tasks(*part, self._code.missing(*part)))

    def _tasks(
        self, unit: Unit, local: Structure, phase: Phase, kinds: Iterable[CallKind]
    ) -> list[CompileTask]:
        variant = self._code.variant(unit, local, phase)
        kinds = merge(kinds) if self._merges else list(kinds)
        fresh = [kind for kind in kinds if all(kind != made for made, _ in variant.artifacts)]
        return [CompileTask(unit, variant, phase, kind) for kind in fresh]


def _by_urgency(tasks: list[CompileTask], first: Container[object]) -> list[CompileTask]:
    """Calls of the training loop come first, by what runs ``first``: with code for those it is live."""
    if not any(task.kind.trains for task in tasks):
        return tasks
    tasks = [
        replace(task, is_required=task.kind.trains and (task.variant, task.kind) in first) for task in tasks
    ]
    return sorted(tasks, key=lambda task: (not task.is_required, not task.kind.trains))


def _distinct(tasks: Iterable[CompileTask]) -> list[CompileTask]:
    """One task for each piece of code: equal units share it."""
    return list({(task.variant, task.phase, task.kind): task for task in tasks}.values())
