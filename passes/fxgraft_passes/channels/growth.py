"""How a group of channels grows: the wider tensors, and what else changes with them.

``"zero"``: what new channels are made by is as the layer initialises it, what reads them is zero. Where a
normalisation is computed over the channels it is the other way round: new channels are zero, or the mean of
the others where it subtracts the mean, so that they are zero behind it; its weight and eps make up for the
channels that it counts more (average expansion, LEMON, arXiv 2310.07999); what reads them is as the layer
initialises it.

``"split"``: new channels are copies of old ones, and what reads them is shared between the copies, in parts
that are not quite equal, so that they can become different (Net2Wider, arXiv 1511.05641).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft_passes.channels.analysis import MEAN
from fxgraft_passes.channels.comparing import difference, outputs
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.channels.layout import Spread, atoms, spread
from fxgraft_passes.channels.settings import Setting, applied, fit, own_settings
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

    def spread(self, path: str, tensor: Tensor, copies: bool) -> Tensor:
        """A tensor of the old shape of ``path`` (a moment of an optimizer) in the new one.

        Old entries are where they belong; new ones are zero, or with ``copies`` those of the entries that
        they are made like.
        """
        wide, fresh = widened(tensor, self.spreads[path])
        return wide if copies else torch.where(fresh, torch.zeros_like(wide), wide)


def check(group: ChannelGroup, by: int, init: str) -> int:
    """How many units ``by`` channels are.

    Raises:
        ChannelError: the group cannot grow, or not by that.
        ValueError: for an unknown ``init``.
    """
    if init not in INITS:
        raise ValueError(f"init: expected one of {', '.join(map(repr, INITS))}; got {init!r}")
    if isinstance(by, bool) or not isinstance(by, int) or by <= 0:
        raise ChannelError(f"{group.name}: by: expected a number of channels, 1 or more; got {by!r}")
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
            "init='zero'"
        )
    return by // group.unit


def grow(subject: Subject, group: ChannelGroup, by: int, init: str, seed: int) -> Growth:
    """Plan it, inside of a session of the subject: wider tensors, and the numbers that go with them.

    Args:
        subject: the model.
        group: one of its groups.
        by: how many channels more.
        init: ``"zero"`` or ``"split"``.
        seed: of the new weights.

    Raises:
        ChannelError: it cannot grow so.
    """
    units = check(group, by, init)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        plan = _Plan(subject, group, units, init)
        tensors = {path: fill(subject.now(path).detach()) for path, fill in plan.fills.items()}
    numbers = group.analysis.numbers(group.atom, units)
    try:
        expected = {
            mode: [(step.target, step.sizes(group.atom, units)) for step in steps]
            for mode, steps in group.analysis.steps.items()
        }
        settings = fit(subject, tensors, numbers, plan.settings(tensors), expected)
    except ChannelError as error:
        raise ChannelError(f"{group.name}: {error}") from None
    return Growth(group, by, init, plan.spreads, tensors, plan.fills, settings)


def tried(subject: Subject, groups: Mapping[str, ChannelGroup]) -> dict[str, ChannelGroup]:
    """The groups; those with which the model's own code does not run when they are larger are fixed.

    So are those with which it computes something else, where runs have data. Groups of equal layers are tried
    once.
    """
    known: dict[object, tuple[int, str | None]] = {}
    found = dict(groups)
    with subject.session():
        before = None if subject.without_data else outputs(subject)
        for name, group in groups.items():
            if group.fixed is None:
                key = _kind(subject, group)
                if key not in known:
                    known[key] = _tried(subject, group, before)
                times, why = known[key]
                found[name] = replace(group, fixed=why, grain=group.unit * times)
    return found


def _tried(subject: Subject, group: ChannelGroup, before: Sequence[Tensor] | None) -> tuple[int, str | None]:
    """By how many units at least it can grow, and why it cannot."""
    why = _why_not(subject, group, before)
    if why is not None and "multiple" in why:  # kernels of which the strides have to be aligned
        aligned = replace(group, grain=group.unit * _ALIGNED)
        if _why_not(subject, aligned, before) is None:
            return _ALIGNED, None
    return 1, why


def _why_not(subject: Subject, group: ChannelGroup, before: Sequence[Tensor] | None) -> str | None:
    try:
        growth = grow(subject, group, group.grain, "zero", 0)
        if before is not None:
            with subject.with_tensors(growth.tensors), applied(growth.settings, subject):
                difference(group.name, before, outputs(subject))
    except ChannelError as error:
        return str(error).removeprefix(f"{group.name}: ")
    return None


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


def _along(dim: int, values: Sequence[Any], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The values as a tensor that broadcasts along one dimension of ``like``."""
    flat = torch.tensor(values, device=like.device, dtype=dtype)
    return flat.reshape([-1 if i == dim else 1 for i in range(like.dim())])


class _Plan:
    """What becomes of each tensor of a group."""

    def __init__(self, subject: Subject, group: ChannelGroup, units: int, init: str):
        self._subject, self._group, self._units = subject, group, units
        old = group.atom.size
        self.ratio = old / (old + units)
        order = torch.randperm(old).tolist()
        like = [order[i % old] for i in range(units)]
        self._shares = _shares(old, like)
        self._roles: dict[str, dict[int, set[str]]] = {}
        for member in group.members:
            self._roles.setdefault(member.name, {}).setdefault(member.dimension, set()).add(member.role)
        layouts = group.analysis.tensors
        self.spreads = {
            path: [(dim, spread(layouts[path][dim], group.atom, like)) for dim in dims]
            for path, dims in self._roles.items()
        }
        self._initial: dict[str, Tensor] = {}
        self.fills = {path: self._fill(path, init) for path in self._roles}

    # What becomes of values

    def _fill(self, path: str, init: str) -> Callable[[Tensor], Tensor]:
        if init == "split":
            return self._split(path)
        return self._averaged(path) if self._group.normalised else self._zeroed(path)

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

    def _zeroed(self, path: str) -> Callable[[Tensor], Tensor]:
        spreads, roles = self.spreads[path], self._roles[path]

        def fill(tensor: Tensor) -> Tensor:
            wide, fresh = widened(tensor, spreads)
            wide = torch.where(fresh, self._new(path, wide, fresh), wide)
            for dim, found in spreads:
                if "consumer" in roles[dim]:
                    wide = wide.masked_fill(_along(dim, found.fresh, wide), 0)
            return wide

        return fill

    def _averaged(self, path: str) -> Callable[[Tensor], Tensor]:
        """The stream between blocks, over which norms are computed."""
        spreads, roles = self.spreads[path], self._roles[path]
        weights, biases = self._of_norms()
        means = any(norm.kind == "layer" for norm in self._norms())

        def fill(tensor: Tensor) -> Tensor:
            if path in biases:
                wide, fresh = widened(tensor, spreads)
                return torch.where(fresh, torch.zeros_like(wide), wide)
            if path in weights:
                wide, fresh = widened(tensor, spreads)
                return torch.where(fresh, wide.mean(), wide) * sqrt(self.ratio)
            wide, fresh = widened(tensor, spreads)
            wide = torch.where(fresh, self._new(path, wide, fresh), wide)
            for dim, found in spreads:
                if "consumer" in roles[dim] and "producer" not in roles[dim]:
                    continue
                mean = tensor.mean(dim, keepdim=True) if means else torch.zeros((), device=wide.device)
                for other, along in spreads:
                    if other != dim and means:
                        mean = mean.index_select(other, torch.tensor(along.origin, device=mean.device))
                wide = torch.where(_along(dim, found.fresh, wide), mean.to(wide.dtype), wide)
            return wide

        return fill

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
