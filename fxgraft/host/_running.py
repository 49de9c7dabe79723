"""The code that runs: the generated forwards of a structure in the regions of a host, and compiled code.

The host owns the state (model, seeds); this owns the code. A swap of structures goes through `Running.enter`.
The code is valid for the classes that the modules had when they were traced: `KnownClasses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from operator import is_
from typing import TYPE_CHECKING, Any

from torch import nn

from fxgraft.capture.codegen import Generated
from fxgraft.capture.region import Region
from fxgraft.errors import TraceError
from fxgraft.slots.structure import Structure
from fxgraft_passes import Graft, Phase

if TYPE_CHECKING:
    from fxgraft.compiling.compiled import CompiledHost
    from fxgraft.compiling.units import Unit


_OF_ANY_CLASS = {"__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__new__"}


class KnownClasses:
    """Notices a module whose class was changed since it was traced: ``module.__class__ = Other``.

    Args:
        regions: of the modules.
    """

    def __init__(self, regions: Iterable[Region] = ()):
        self._regions = list(regions)
        self._modules = [region.module for region in self._regions]
        self._classes = [region.traced_class for region in self._regions]

    def check(self) -> None:
        """Raise `TraceError` for a module that has a class of other code now."""
        if all(map(is_, map(type, self._modules), self._classes)):
            return
        for i, module in enumerate(self._modules):
            was, now = self._classes[i], type(module)
            if now is not was and (other := _redefined(was, now)):
                raise TraceError(
                    f"the class of {self._regions[i].name or 'the model'!r} was changed after fxgraft.trace, "
                    f"from {was.__name__} to {now.__name__}, which has another {other}; what grew there is "
                    f"part of a graph of {was.__name__}. Expected classes as they were: change them before "
                    f"tracing, or put {was.__name__} back"
                )
            self._classes[i] = now


def _redefined(was: type, now: type) -> str:
    """What of the code of ``was`` is other code in ``now``; empty for a subclass that only adds."""
    own = {"forward"}.union(*(vars(base) for base in was.__mro__ if not _is_of_torch(base)))
    for name in sorted(own - _OF_ANY_CLASS):
        if getattr(was, name, None) is not getattr(now, name, None):
            return name
    return ""


def _is_of_torch(cls: type) -> bool:
    return cls is object or cls.__module__.partition(".")[0] == "torch"


Grafts = Mapping[str, Graft]


class Running:
    """The code that a host runs now.

    Args:
        root: the traced model.
        regions: its regions, by their names.

    Attributes:
        structure: the grafts that run.
        phase: which forward of the structure.
        compiled: the compiled form of the host, if there is one.
        call: what runs the model.
        classes: those that the code which runs is of.
        regions: those that were given; others only while there is no graft in any.
    """

    def __init__(self, root: nn.Module, regions: Mapping[str, Region]):
        self.structure = Structure()
        self.phase = Phase.ISOLATED
        self.compiled: CompiledHost | None = None
        self.call: Callable[..., Any] = root
        self._root = root
        self.regions = regions
        self.classes = KnownClasses()
        self._phases: dict[str, Phase] = {}  # region -> the phase that is installed there

    def prepare(self, structure: Structure, phases: Iterable[Phase]) -> None:
        """Generate and verify what ``structure`` needs to run; nothing that runs is touched."""
        structure.refuse_split_blocks()
        for phase in phases:
            for name in structure.by_region:
                self._generated(structure, name, phase)

    def enter(self, structure: Structure, phase: Phase, grafts: Grafts) -> None:
        """Run ``structure`` from now on. ``grafts`` are the modules of all its seeds, by name."""
        before = self.structure
        # First: what is put back after an interrupted swap has to cover the regions of both.
        self.structure, self.phase = structure, phase
        units: Iterable[Unit] = ()
        if self.compiled is not None:
            self.compiled.grow(structure, grafts)
            units = self.compiled.units.touched(structure, before)
        self._enter(grafts, before, units)

    def compile(self, options: Mapping[str, Any], granularity: str, grafts: Grafts) -> None:
        """Run through ``torch.compile(**options)`` from now on."""
        from fxgraft.compiling.compiled import CompiledHost  # the compiler takes a second to import

        self.take(CompiledHost(self._root, options, granularity, self.regions), grafts)

    def take(self, compiled: CompiledHost, grafts: Grafts) -> None:
        """Run through this compiled form from now on."""
        if self.compiled is not None:
            self.compiled.stop()
        self.compiled = compiled
        compiled.grow(self.structure, grafts)
        self._enter(grafts, self.structure, compiled.units.all)

    @contextmanager
    def probing(
        self, structure: Structure, phase: Phase, grafts: Grafts, extra_grafts: Grafts
    ) -> Iterator[None]:
        """Run another structure or phase inside, in eager mode.

        Args:
            structure: the structure.
            phase: its phase.
            grafts: the modules of all seeds that run now.
            extra_grafts: those of seeds in ``structure`` that do not.
        """
        regions = self.structure.by_region.keys() | structure.by_region.keys()
        eager = self.compiled.stopped() if self.compiled else nullcontext()
        try:
            with eager:
                self._install(structure, dict.fromkeys(regions, phase), {**grafts, **extra_grafts})
                yield
        finally:
            self._install(self.structure, {**dict.fromkeys(regions, self.phase), **self._phases}, grafts)

    def warm_up(self, before: Structure, grafts: Grafts, *seeds: nn.Module) -> None:
        """Compile every forward of the structure for the calls seen so far, where that is missing.

        Those that run first come first. The others are left to the compiler process where that stands by, and
        calls that need one wait for it.

        Args:
            before: the structure that this one replaced: only units that differ are looked at.
            grafts: the modules of all seeds that run now.
            *seeds: the module trees of the seeds.
        """
        if self.compiled is None:
            return
        first: list[tuple[Unit, Structure, Phase]] = []
        later: list[tuple[Unit, Structure, Phase]] = []
        for unit in self.compiled.units.touched(before, self.structure):
            local = unit.local(self.structure)
            runs_first = self.compiled.code.phase_in(unit, self.structure, self.phase, grafts)
            for phase in self.compiled.code.phases_of(unit, self.structure, grafts):
                if self.compiled.code.missing(unit, local, phase):
                    (first if phase is runs_first else later).append((unit, local, phase))
        if first and later and self.compiled.leave_to_helper(later):
            later = []
        for unit, local, phase in (*first, *later):
            with self.probing(self.structure, phase, grafts, {}):
                self.compiled.warm_up(unit, local, phase, *seeds)

    def repeat_eagerly(self, region: str, *seeds: nn.Module) -> None:
        """Run the units that hold ``region`` in eager mode, on inputs like those of their latest call."""
        if self.compiled is None:
            return
        with self.compiled.stopped():
            for unit in self.compiled.units.all:
                if unit.holds(self.structure.home(region)):
                    self.compiled.repeat_eagerly(unit, *seeds)

    def _enter(self, grafts: Grafts, before: Structure, units: Iterable[Unit]) -> None:
        """Install the structure in all regions that it or ``before`` has grafts in, and its compiled code."""
        structure, compiled = self.structure, self.compiled
        regions = structure.by_region.keys() | before.by_region.keys()
        phases = dict.fromkeys(regions, self.phase)
        if compiled is not None:
            of_units = {unit: compiled.code.phase_in(unit, structure, self.phase, grafts) for unit in units}
            homes = {r: (structure if r in structure.by_region else before).home(r) for r in regions}
            phases |= {region: of_units[u] for u in of_units for region in regions if u.holds(homes[region])}
        self._install(structure, phases, grafts)
        self._phases = phases
        if compiled is None:
            self.call = self._root
        elif of_units:
            self.call = compiled.run(structure, of_units, grafts)

    def _install(self, structure: Structure, phases: Mapping[str, Phase], grafts: Grafts) -> None:
        for name, phase in phases.items():
            placements = structure.by_region.get(name, ())
            generated = self._generated(structure, name, phase) if placements else None
            self.regions[name].install(generated, [grafts[p.seed] for p in placements])
        running = {n for name in structure.by_region for n in (name, *structure.merged.get(name, ()))}
        self.classes = KnownClasses(self.regions[name] for name in sorted(running))

    def _generated(self, structure: Structure, name: str, phase: Phase) -> Generated:
        parts = [self.regions[part] for part in structure.merged.get(name, ())]
        return self.regions[name].forward_for(structure.wirings(name), phase, parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "compiled": None, "call": self._root}
