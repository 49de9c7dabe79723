"""How a group of channels grows: the wider tensors, and what else changes with them.

``"zero"``: what new channels are made by is as the layer initialises it, what reads them is zero. Where a
normalisation is computed over the channels it is the other way round: new channels are zero, or the mean of
the others where it subtracts the mean, so that they are zero behind it; its weight and eps make up for the
channels that it counts more (average expansion, LEMON, arXiv 2310.07999); what reads them there is as the
layer initialises it, and what reads them in front of it is zero.

``"split"``: new channels are copies of old ones, and what reads them is shared between the copies, in parts
that are not quite equal, so that they can become different (Net2Wider, arXiv 1511.05641).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft_passes.channels.analysis import DOT, MEAN
from fxgraft_passes.channels.comparing import difference, outputs
from fxgraft_passes.channels.groups import ChannelGroup, Member
from fxgraft_passes.channels.layout import Atom, Spread, atoms, passes_through, spread
from fxgraft_passes.channels.settings import Setting, UnfitError, applied, fit, own_settings
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.errors import ChannelError

INITS = ("zero", "split")
_ALIGNED = 8
"""Units at a time, where a kernel (a grouped product) takes only strides that are a multiple of 16 bytes."""

_NOISE = 0.05
"""By how much the shares of copies differ from equal ones, at most."""


@dataclass(frozen=True)
class Growth:
    """A planned growth of one group; nothing has been changed yet.

    Attributes:
        group: which.
        by: by how many channels.
        init: how new ones begin.
        spreads: path -> the dimensions that grow, and how.
        tensors: path -> the wider tensor.
        fills: path -> what makes the wider one from any tensor of the old shape, as for an average of the
            weights.
        settings: numbers that change with it.
    """

    group: ChannelGroup
    by: int
    init: str
    spreads: Mapping[str, Sequence[tuple[int, Spread]]]
    tensors: Mapping[str, Tensor]
    fills: Mapping[str, Callable[[Tensor], Tensor]]
    settings: Sequence[Setting]

    def of(self, subject: Subject) -> Growth:
        """The same growth of the subject's tensors of now, which may have been trained since."""
        with torch.no_grad():
            tensors = {path: _filled(subject.now(path).detach(), fill) for path, fill in self.fills.items()}
        return replace(self, tensors=tensors)

    def spread(self, path: str, tensor: Tensor, copies: bool) -> Tensor:
        """A tensor of the old shape of ``path`` (a moment of an optimizer) in the new one.

        Old entries are where they belong; new ones are zero, or with ``copies`` those of the entries that
        they are made like.
        """
        wide, fresh = widened(tensor, self.spreads[path])
        return _laid_out_as(tensor, wide if copies else torch.where(fresh, torch.zeros_like(wide), wide))


def check(group: ChannelGroup, by: int, init: str) -> int:
    """How many units ``by`` channels are.

    Raises:
        ChannelError: the group cannot grow, or not by that.
        ValueError: for an unknown ``init``.
    """
    check_wish(group.name, by, init)
    if group.fixed is not None:
        raise ChannelError(f"{group.name}: its {group.size} channels cannot grow: {group.fixed}")
    if by % group.grain:
        raise ChannelError(
            f"{group.name}: by: expected a multiple of {group.grain}, as its channels come in parts of that; "
            f"got {by}"
        )
    if init == "split" and group.normalised:
        raise ChannelError(
            f"{group.name}: a normalisation is computed over these channels, and copies would change it: use "
            f"init='zero'"
        )
    return by // group.unit


def check_wish(name: str, by: int, init: str) -> None:
    """What can be said of a wish without the group. Raises as `check` does."""
    if init not in INITS:
        raise ValueError(f"init: expected one of {', '.join(map(repr, INITS))}; got {init!r}")
    if isinstance(by, bool) or not isinstance(by, int) or by <= 0:
        raise ChannelError(f"{name}: by: expected a number of channels, 1 or more; got {by!r}")


def grow(
    subject: Subject,
    group: ChannelGroup,
    by: int,
    init: str,
    seed: int,
    before: Sequence[Tensor] | None = None,
) -> Growth:
    """Plan it, inside of a session of the subject: wider tensors, and the numbers that go with them.

    Args:
        subject: the model.
        group: one of its groups.
        by: how many channels more.
        init: ``"zero"`` or ``"split"``.
        seed: of the new weights.
        before: the outputs that it is to have, where they are to be compared.

    Raises:
        ChannelError: it cannot grow so.
    """
    units = check(group, by, init)
    growths = group.growths(units)
    expected = {
        mode: [(step.target, step.sizes(growths)) for step in steps]
        for mode, steps in group.analysis.steps.items()
    }
    settings: list[Setting] | None = None

    def attempt(guess: _Guess) -> Growth:
        nonlocal settings
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            plan = _Plan(subject, group, growths, init, guess)
            tensors = {path: _filled(subject.now(path).detach(), fill) for path, fill in plan.fills.items()}
        if settings is None:  # shapes are those of the first attempt
            try:
                settings = fit(
                    subject, tensors, group.analysis.numbers(growths), plan.settings(tensors), expected
                )
            except UnfitError as error:
                error.args = (f"{group.name}: {error}",)
                raise
        if before is not None:
            with subject.with_tensors(tensors), applied(settings, subject):
                difference(group.name, before, outputs(subject))
        return Growth(group, by, init, plan.spreads, tensors, plan.fills, settings)

    return _first_that_fits(attempt, _guesses(group, growths))


@dataclass(frozen=True)
class _Guess:
    """What only values tell of a model.

    Attributes:
        queries: by what queries are scaled: attention divides by the root of the head's size, or by a number
            that stays.
        added: what is added to the weight of a norm by hand: it multiplies by its weight, or by one more.
        bare: of normalised channels, the weights that read them as they are, not behind the normalisation.
    """

    queries: float
    added: float
    bare: frozenset[str] = frozenset()


def _guesses(group: ChannelGroup, growths: Mapping[Atom, int]) -> Iterator[_Guess]:
    ratio = max((1 + n / atom.size for atom, n in growths.items() if DOT in atom.hazards), default=1.0)
    for bare in dict.fromkeys((frozenset[str](), group.readers if group.normalised else frozenset[str]())):
        for queries in dict.fromkeys((sqrt(ratio), 1.0)):
            yield _Guess(queries, 0.0, bare)
            if MEAN in group.atom.hazards:
                yield _Guess(queries, 1.0, bare)


def _first_that_fits(attempt: Callable[[_Guess], Growth], guesses: Iterable[_Guess]) -> Growth:
    """The growth by the first guess that keeps the function, with as few ``bare`` weights as do."""
    failed: ChannelError | None = None
    for guess in guesses:
        try:
            growth = attempt(guess)
        except UnfitError:
            raise
        except ChannelError as error:
            failed = failed or error
            continue
        needed = frozenset(
            path for path in guess.bare if not _fits(attempt, replace(guess, bare=guess.bare - {path}))
        )
        return growth if needed == guess.bare else attempt(replace(guess, bare=needed))
    assert failed is not None
    raise failed


def _fits(attempt: Callable[[_Guess], Growth], guess: _Guess) -> bool:
    try:
        attempt(guess)
    except ChannelError:
        return False
    return True


def tried(subject: Subject, groups: Mapping[str, ChannelGroup]) -> dict[str, ChannelGroup]:
    """The groups; those with which the model's own code does not run when they are larger are fixed.

    So are those with which it computes something else, where runs have data. Groups of equal layers are tried
    once.
    """
    known: dict[object, ChannelGroup] = {}
    found = dict(groups)
    with subject.session():
        before = None if subject.without_data else outputs(subject)
        for name, group in groups.items():
            if group.fixed is not None:
                continue
            key = _kind(subject, group)
            if key not in known or known[key].companions or group.companions:
                known[key] = _tried(subject, group, groups, before)
            like = known[key]
            is_own = like.companions or like.atom is group.atom
            found[name] = like if is_own else replace(group, fixed=like.fixed, grain=like.grain)
    return found


def _tried(
    subject: Subject,
    group: ChannelGroup,
    groups: Mapping[str, ChannelGroup],
    before: Sequence[Tensor] | None,
) -> ChannelGroup:
    """The group as it can grow: by itself, by aligned numbers, with others in proportion, or not at all."""
    why = _why_not(subject, group, before)
    if why is None:
        return group
    if "multiple" in why.reason:  # kernels of which the strides have to be aligned
        aligned = replace(group, grain=group.unit * _ALIGNED)
        if _why_not(subject, aligned, before) is None:
            return aligned
    together, further = group, why
    while (larger := _with_companions(together, groups, further.at)) is not None:
        together, again = larger, _why_not(subject, larger, before)
        if again is None:
            return together
        further = again
    return replace(group, fixed=why.reason)


@dataclass(frozen=True)
class _Why:
    """Why a group cannot grow, and the module that does not run."""

    reason: str
    at: str


def _why_not(subject: Subject, group: ChannelGroup, before: Sequence[Tensor] | None) -> _Why | None:
    try:
        grow(subject, group, group.grain, "zero", 0, before)
    except ChannelError as error:
        return _Why(str(error).removeprefix(f"{group.name}: "), getattr(error, "at", ""))
    return None


def _with_companions(group: ChannelGroup, groups: Mapping[str, ChannelGroup], at: str) -> ChannelGroup | None:
    """The group with the sizes of heads of the module that fails, which code takes as shares of its size."""
    size, others = group.atom.size, dict(group.companions)
    for other in groups.values():
        inside = at and all(m.path == at or m.path.startswith(f"{at}.") for m in other.members)
        is_free = not other.atom.reasons and other.atom is not group.atom and other.atom not in others
        if (
            inside
            and is_free
            and other.unit == 1
            and 1 < other.atom.size < size
            and size % other.atom.size == 0
        ):
            others |= {other.atom: _own(other), **other.companions}
    if len(others) == len(group.companions):
        return None
    times = lcm(*(size // atom.size for atom in others))
    return replace(
        group,
        companions=others,
        grain=group.unit * times,
        members=(*dict.fromkeys((*group.members, *(m for each in others.values() for m in each))),),
    )


def _kind(subject: Subject, group: ChannelGroup) -> object:
    """What groups have in common that the same code makes and reads."""
    parts = []
    for member in group.members:
        module = subject.modules[member.path]
        around = subject.modules.get(member.path.rpartition(".")[0])
        numbers = [
            sorted((n, v) for n, v in m.__dict__.items() if type(v) is int) for m in (module, around) if m
        ]
        shape = tuple(subject.tensors[member.name].shape)
        parts.append(
            (type(module), type(around), str(numbers), member.parameter, member.dimension, member.role, shape)
        )
    return group.size, group.grain, tuple(parts)


def widened(tensor: Tensor, spreads: Sequence[tuple[int, Spread]]) -> tuple[Tensor, Tensor]:
    """The tensor with the indices of ``spreads``, new ones like those they are made like; which are new."""
    fresh = torch.zeros((1,) * tensor.dim(), dtype=torch.bool, device=tensor.device)
    for dim, found in spreads:
        tensor = tensor.index_select(dim, torch.tensor(found.origin, device=tensor.device))
        fresh = fresh | _along(dim, found.fresh, tensor)
    return tensor, fresh.expand(tensor.shape)


def _filled(tensor: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
    return _laid_out_as(tensor, fill(tensor))


def _laid_out_as(tensor: Tensor, wide: Tensor) -> Tensor:
    """``wide`` with its channels last where those of ``tensor`` are."""
    last = torch.channels_last
    is_so = tensor.dim() == 4 and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous()
    return wide.contiguous(memory_format=last if is_so else torch.contiguous_format)


def _along(dim: int, values: Sequence[Any], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The values as a tensor that broadcasts along one dimension of ``like``."""
    flat = torch.tensor(values, device=like.device, dtype=dtype)
    return flat.reshape([-1 if i == dim else 1 for i in range(like.dim())])


class _Plan:
    """What becomes of each tensor of a group."""

    def __init__(
        self,
        subject: Subject,
        group: ChannelGroup,
        growths: Mapping[Atom, int],
        init: str,
        guess: _Guess,
    ):
        self._subject, self._group, self._guess = subject, group, guess
        self.ratio = group.atom.size / (group.atom.size + growths[group.atom])
        like = {group.atom: _like(group.atom.size, growths[group.atom])}
        for atom, units in growths.items():  # what is tied to the leading atom is copied alike
            alike = like[group.atom] if atom.size == group.atom.size else _like(atom.size, units)
            like.setdefault(atom, alike)
        leads = {atom for atom in like if like[atom] is like[group.atom]}
        self._shares = _shares(group.atom.size, like[group.atom])
        self._roles: dict[str, dict[int, set[str]]] = {}
        for member in group.members:
            self._roles.setdefault(member.name, {}).setdefault(member.dimension, set()).add(member.role)
        self._layouts = group.analysis.tensors
        self.spreads = {
            path: [(dim, spread(self._layouts[path][dim], like, leads)) for dim in dims]
            for path, dims in self._roles.items()
        }
        self._initial: dict[str, Tensor] = {}
        self.fills = {path: self._fill(path, init) for path in self._roles}

    # What becomes of values

    def _fill(self, path: str, init: str) -> Callable[[Tensor], Tensor]:
        if init == "split":
            return self._split(path)
        weights, biases = self._of_norms() if self._group.normalised else (set(), set())
        if path in weights or path in biases:
            return self._of_a_norm(path, 0.0 if path in biases else None)
        return self._zeroed(path)

    def _split(self, path: str) -> Callable[[Tensor], Tensor]:
        spreads, roles, shares = self.spreads[path], self._roles[path], self._shares

        def fill(tensor: Tensor) -> Tensor:
            wide, _ = widened(tensor, spreads)
            for dim, found in spreads:
                if "consumer" in roles[dim]:
                    share = [1.0 if unit < 0 else shares[unit] for unit in found.unit]
                    wide = wide * _along(dim, share, wide, wide.dtype)
            return wide

        return fill

    def _of_a_norm(self, path: str, new: float | None) -> Callable[[Tensor], Tensor]:
        """The weight or the bias of a norm, which makes up for the channels that it counts more."""
        spreads = self.spreads[path]
        by_hand = path.rpartition(".")[0] in self._group.atom.hazards.get(MEAN, ())
        added = self._guess.added if by_hand else 0.0

        def fill(tensor: Tensor) -> Tensor:
            wide, fresh = widened(tensor, spreads)
            if new is not None:
                return wide.masked_fill(fresh, new)
            wide = torch.where(fresh, tensor.mean(), wide)
            return (wide + added) * sqrt(self.ratio) - added

        return fill

    def _zeroed(self, path: str) -> Callable[[Tensor], Tensor]:
        """What is new on one side is as initialised, what is new on the other makes nothing of it."""

        def fill(tensor: Tensor) -> Tensor:
            wide, fresh = widened(tensor, self.spreads[path])
            wide = torch.where(fresh, self._new(path, wide, fresh), wide)
            for dim, found in self.spreads[path]:
                wide = self._along_one(path, dim, found, wide)
            return wide

        return fill

    def _along_one(self, path: str, dim: int, found: Spread, wide: Tensor) -> Tensor:
        inside, roles = atoms(self._layouts[path][dim]), self._roles[path][dim]
        fresh = _along(dim, found.fresh, wide)
        if self._group.normalised and self._group.atom in inside:
            if "consumer" in roles and "producer" not in roles:
                return wide.masked_fill(fresh, 0) if path in self._guess.bare else wide
            return torch.where(fresh, self._mean(wide, dim, found), wide)
        if any(DOT in atom.hazards for atom in inside if atom in self._group.companions):
            marked = passes_through(self._layouts[path][dim], self._group.analysis.queries)
            is_query = _along(dim, [marked[i] for i in found.origin], wide)
            wide = torch.where(is_query, wide * self._guess.queries, wide)
            is_key = _along(dim, self._of_companions(path, dim, found), wide) & ~is_query
            return wide.masked_fill(fresh & is_key, 0)
        return wide.masked_fill(fresh, 0) if "consumer" in roles else wide

    def _of_companions(self, path: str, dim: int, found: Spread) -> list[bool]:
        """Which indices are of an atom along which computed values are multiplied."""
        dots = [atom for atom in self._group.companions if DOT in atom.hazards]
        marked = passes_through(self._layouts[path][dim], dots)
        return [marked[i] for i in found.origin]

    def _mean(self, wide: Tensor, dim: int, found: Spread) -> Tensor:
        """What new channels of a normalised stream begin as."""
        if not any(norm.kind == "layer" for norm in self._norms()):
            return torch.zeros((), dtype=wide.dtype, device=wide.device)
        old = torch.tensor([i for i, new in enumerate(found.fresh) if not new], device=wide.device)
        return wide.index_select(dim, old).mean(dim, keepdim=True)

    def _new(self, path: str, wide: Tensor, fresh: Tensor) -> Tensor:
        """The weights as the layer initialises them, at their new size: the same ones each time."""
        if path not in self._initial:
            self._initial[path] = self._as_initialised(path, wide, fresh)
        return self._initial[path].to(wide.device, wide.dtype)

    def _as_initialised(self, path: str, wide: Tensor, fresh: Tensor) -> Tensor:
        owner, _, name = path.rpartition(".")
        module = self._subject.modules[owner]
        reset = getattr(module, "reset_parameters", None)
        if callable(reset) and wide.device.type != "meta":
            twin = copy.copy(module)
            twin.__dict__ = {**module.__dict__, "_parameters": {}, "_buffers": {}}
            for register in ("_parameters", "_buffers"):
                for key, tensor in getattr(module, register).items():
                    twin.__dict__[register][key] = self._like(f"{owner}.{key}" if owner else key, tensor)
            twin.__dict__["reset_parameters"] = reset.__func__.__get__(twin)
            twin.__dict__["reset_parameters"]()
            found = {**twin._parameters, **twin._buffers}[name]
            if found is not None and found.shape == wide.shape:
                return found.detach()
        if wide.dim() < 2:
            return wide.mean().expand(wide.shape)
        return torch.randn_like(wide) * wide.float().std().to(wide.dtype)

    def _like(self, path: str, tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        made, _ = widened(tensor.detach(), self.spreads.get(path, ()))
        made = made.clone()
        return nn.Parameter(made) if isinstance(tensor, nn.Parameter) else made

    # What becomes of numbers

    def _norms(self) -> list[Any]:
        return [norm for norm in self._group.analysis.norms if self._group.atom in atoms(norm.layout)]

    def _of_norms(self) -> tuple[set[str], set[str]]:
        """The weights and the biases of the norms over the group."""
        norms = self._norms()
        if bare := next((norm for norm in norms if norm.weight is None), None):
            raise ChannelError(
                f"{self._group.name}: the norm in {bare.module} has no weight, which would have to make up "
                "for the "
                f"channels that it counts more"
            )
        by_hand = self._group.atom.hazards.get(MEAN, ())
        weights = {m.name for m in self._group.members if m.path in by_hand}
        return (
            weights | {norm.weight for norm in norms if norm.weight},
            {norm.bias for norm in norms if norm.bias},
        )

    def settings(self, tensors: Mapping[str, Tensor]) -> list[Setting]:
        """The numbers that are known to change."""
        found = []
        for owner in dict.fromkeys(member.path for member in self._group.members):
            prefix = f"{owner}." if owner else ""
            wide = {p[len(prefix) :]: t for p, t in tensors.items() if p.rpartition(".")[0] == owner}
            found += own_settings(owner, self._subject.modules[owner], wide)
        if self._group.normalised:
            places = {norm.module for norm in self._norms()} | set(self._group.atom.hazards.get(MEAN, ()))
            found += [setting for place in sorted(places) for setting in self._eps(place)]
        return found

    def _eps(self, place: str) -> list[Setting]:
        module = self._subject.modules[place]
        if isinstance(module, nn.RMSNorm) and module.eps is None:
            dtype = next(module.parameters()).dtype
            return [Setting(place, "eps", None, None, torch.finfo(dtype).eps * self.ratio)]
        small = [n for n, v in module.__dict__.items() if type(v) is float and 0 < v < 1e-2]
        if len(small) > 1:
            raise ChannelError(
                f"{self._group.name}: {place} has several small numbers ({', '.join(small)}), one of which "
                "is its eps"
            )
        return [Setting(place, n, None, module.__dict__[n], module.__dict__[n] * self.ratio) for n in small]


def _own(group: ChannelGroup) -> tuple[Member, ...]:
    """The members of the leading atom."""
    others = {member for members in group.companions.values() for member in members}
    return tuple(member for member in group.members if member not in others)


def _like(size: int, units: int) -> list[int]:
    """For each new unit an old one, at random, each equally often."""
    order = torch.randperm(size).tolist()
    return [order[i % size] for i in range(units)]


def _shares(old: int, like: Sequence[int]) -> list[float]:
    """For each unit its share of what reads it, where it is one of several copies."""
    copies: dict[int, list[int]] = {unit: [unit] for unit in range(old)}
    for i, unit in enumerate(like):
        copies[unit].append(old + i)
    shares = [1.0] * (old + len(like))
    for units in copies.values():
        if len(units) > 1:
            noise = torch.rand(len(units), dtype=torch.float64) - 0.5
            noise = (noise - noise.mean()) * 2 * _NOISE
            for unit, off in zip(units, noise.tolist(), strict=True):
                shares[unit] = (1.0 + off) / len(units)
    return shares
