"""What can grow in a model: groups of channels.

    find(subject) -> {"blocks.0.up": ChannelGroup(size=256, grain=1, members=[...], fixed=None), ...}

A group is an atom of the analysis with the dimensions of parameters that it is part of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, count

from fxgraft_passes.channels import (  # noqa: F401 (each enters its rules into the table)
    _rules_elementwise,
    _rules_items,
    _rules_products,
    _rules_shapes,
)
from fxgraft_passes.channels._analysis import DOT, MEAN, NORM, Analysis
from fxgraft_passes.channels._grown_layout import grain_in
from fxgraft_passes.channels._rules_table import RULES
from fxgraft_passes.channels.layout import Atom, atoms
from fxgraft_passes.channels.recording import Recording
from fxgraft_passes.channels.subject import Subject

_ROLES = {"in": "consumer", "out": "producer", "norm": "norm", "scale": "scale"}


@dataclass(frozen=True)
class Member:
    """A dimension of a parameter (or of a norm's buffer) that grows with its group.

    Attributes:
        path: the module's qualified name; ``""`` is the root.
        parameter: its name in there.
        dimension: which one.
        role: ``"producer"`` makes the channels, ``"consumer"`` reads them, ``"norm"`` belongs to a
            normalisation, ``"scale"`` meets them number by number.
    """

    path: str
    parameter: str
    dimension: int
    role: str

    @property
    def name(self) -> str:
        """The parameter's qualified name."""
        return f"{self.path}.{self.parameter}" if self.path else self.parameter


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can only grow together.

    Attributes:
        name: the name of the layer whose outputs are the channels.
        size: the number of channels.
        grain: they grow by multiples of this number: 12 heads of 64 channels grow by 64.
        members: the dimensions of parameters over which these channels extend.
        fixed: None, or the reason why the group cannot grow.
        unit: how many channels there are more when the atom is larger by one.
        companions: other atoms that the model's code gives sizes in proportion, with their members.
        atom: the group in the analysis: a size that dimensions of tensors have in common.
        analysis: the analysis of the model that found the group.
    """

    name: str
    size: int
    grain: int
    members: tuple[Member, ...]
    fixed: str | None
    unit: int = field(repr=False)
    atom: Atom = field(repr=False)
    analysis: Analysis = field(repr=False)
    companions: Mapping[Atom, tuple[Member, ...]] = field(default_factory=dict, repr=False)

    def growths(self, units: int) -> dict[Atom, int]:
        """By how much each atom grows with that many more units of the leading one.

        Args:
            units: how many more, 1 or more.
        """
        rest = {atom: atom.size * units // self.atom.size for atom in self.companions}
        return {self.atom: units, **rest}

    @property
    def normalised(self) -> bool:
        """Whether a normalisation is computed over it."""
        return bool(self.atom.hazards.keys() & {NORM, MEAN})

    @property
    def readers(self) -> frozenset[str]:
        """The parameters that read the channels."""
        return frozenset(member.name for member in self.members if member.role == "consumer")


def analyse(subject: Subject) -> Analysis:
    """Record the subject in both modes, and read what it does.

    Raises:
        Exception: whatever the model raises in eval mode.
    """
    analysis = Analysis()
    with subject.session():
        _record(subject, analysis, training=False)
        with suppress(Exception):  # a batch of one in a batch norm, say: it is not trained by such a call
            _record(subject, analysis, training=True)
    return analysis


def _record(subject: Subject, analysis: Analysis, training: bool) -> None:
    recording = Recording()
    try:
        used = subject.record({}, training, recording)
    except Exception:
        if not subject.without_data:
            raise
        subject.without_data = False  # code that looks at values has to have some
        recording = Recording()
        used = subject.record({}, training, recording)
    analysis.own(used.items())
    analysis.read(recording, RULES, training)


def find(
    subject: Subject, may_own: Callable[[str], str | None] = lambda path: None
) -> dict[str, ChannelGroup]:
    """The groups of a model by their names, those that lead first.

    Args:
        subject: the model.
        may_own: for the path of a parameter why nothing in it can grow, or None.
    """
    analysis = analyse(subject)
    found: dict[str, ChannelGroup] = {}
    for one in _in_order(subject, analysis, may_own):
        lead = _lead(one.members)
        name = _name(lead, found)
        grain = grain_in(analysis.tensors[lead.name][lead.dimension], one.atom)
        size, companions = one.atom.size * grain, {a: tuple(members) for a, members in one.companions.items()}
        members = dict.fromkeys((*one.members, *chain.from_iterable(companions.values())))
        found[name] = ChannelGroup(
            name, size, grain, tuple(members), one.fixed, grain, one.atom, analysis, companions
        )
    return found


@dataclass(frozen=True)
class _Found:
    """A group that has no name yet."""

    atom: Atom
    members: list[Member]
    fixed: str | None
    companions: Mapping[Atom, list[Member]] = field(default_factory=dict)


def _with_ties(found: list[_Found], tied: list[tuple[Atom, Atom]]) -> list[_Found]:
    """What has to be of one size is one group; the first of them leads."""
    by_atom = {one.atom: one for one in found}
    kept: list[_Found] = []
    gone: set[Atom] = set()
    for one in found:
        if one.atom in gone:
            continue
        others = {atom: by_atom[atom] for atom in _connected(one.atom, tied) if atom in by_atom}
        gone |= others.keys()
        why = next((other.fixed for other in (one, *others.values()) if other.fixed), None)
        kept.append(replace(one, fixed=why, companions={a: other.members for a, other in others.items()}))
    return kept


def _in_order(subject: Subject, analysis: Analysis, may_own: Callable[[str], str | None]) -> list[_Found]:
    """The groups as they lead; of one layer those first that can grow."""
    places = {place: i for i, place in enumerate(_places(analysis))}
    tied = analysis.tied()
    every = _by_atom(analysis)
    found = []
    for atom, members in every.items():
        fixed = next((why for m in members if (why := may_own(m.name))), None)
        found.append(_Found(atom, members, fixed or _why_fixed(subject, analysis, atom, members)))

    def key(group: _Found) -> tuple[int, bool, int]:
        lead = _lead(group.members)
        within = atoms(analysis.tensors[lead.name][lead.dimension])
        return places[lead.name, lead.dimension], group.fixed is not None, within.index(group.atom)

    return _with_ties(sorted(found, key=key), tied)


def _connected(atom: Atom, tied: list[tuple[Atom, Atom]]) -> list[Atom]:
    """The other atoms that it is tied to, be it through others."""
    found = [atom]
    for one in found:
        found += {other for pair in tied if one in pair for other in pair if other not in found}
    return found[1:]


def _lead(members: list[Member]) -> Member:
    return next((m for m in members if m.role == "producer"), members[0])


def _name(lead: Member, taken: Collection[str]) -> str:
    base = lead.path if lead.path and lead.role == "producer" else lead.name
    return next(n for n in chain([base], (f"{base}[{i}]" for i in count(1))) if n not in taken)


def _places(analysis: Analysis) -> list[tuple[str, int]]:
    """Path and dimension of all tensors, those that were used first in the order of their use."""
    every = ((path, i) for path, layouts in analysis.tensors.items() for i in range(len(layouts)))
    return list(dict.fromkeys([*analysis.roles, *every]))


def _by_atom(analysis: Analysis) -> dict[Atom, list[Member]]:
    found: dict[Atom, list[Member]] = {}
    for path, dimension in _places(analysis):
        module, _, parameter = path.rpartition(".")
        roles = analysis.roles.get((path, dimension), ["scale"])
        plain = [role for role in roles if role != "scale"] or ["scale"]
        for atom in atoms(analysis.tensors[path][dimension]):
            found.setdefault(atom, [])
            found[atom] += [Member(module, parameter, dimension, _ROLES[role]) for role in plain]
    # No sizes of kernels and masks, which are only met number by number.
    return {atom: members for atom, members in found.items() if {m.role for m in members} != {"scale"}}


def _why_fixed(subject: Subject, analysis: Analysis, atom: Atom, members: list[Member]) -> str | None:
    if atom.reasons:
        return atom.reasons[0]
    if DOT in atom.hazards:
        return f"{atom.hazards[DOT][0]} multiplies two computed values along it, and sums up"
    for member in members:
        if member.role != "norm" and not subject.is_parameter(member.name):
            return f"the buffer {member.name} has it"
        tensor = subject.tensors[member.name]
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return f"{member.name} is {tensor.dtype}, and new numbers are made in floating point only"
    if not any(member.role == "producer" for member in members):
        return "no layer has it as its outputs"
    if not any(member.role == "consumer" for member in members):
        return "no layer reads it"
    for module in atom.hazards.get(MEAN, ()):
        owned = [m for m in members if m.path == module]
        if len(owned) != 1 or not module or owned[0].role != "scale":
            return f"mean in {module} is computed over it"
    return None
