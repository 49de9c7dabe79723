"""What the new entries of wider tensors begin as.

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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft_passes import devices
from fxgraft_passes.channels._analysis import DOT, MEAN
from fxgraft_passes.channels._grown_layout import Spread, along, passes_through, spread, widened
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.channels.layout import Atom, atoms
from fxgraft_passes.channels.settings import Setting, own_settings
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.errors import ChannelError

_NOISE = 0.05
"""By how much the shares of copies differ from equal ones, at most."""


@dataclass(frozen=True)
class Guess:
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


class Filling:
    """What becomes of each tensor of a group."""

    def __init__(
        self,
        subject: Subject,
        group: ChannelGroup,
        growths: Mapping[Atom, int],
        init: str,
        guess: Guess,
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
                    wide = wide * along(dim, share, wide, wide.dtype)
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
        fresh = along(dim, found.fresh, wide)
        if self._group.normalised and self._group.atom in inside:
            if "consumer" in roles and "producer" not in roles:
                return wide.masked_fill(fresh, 0) if path in self._guess.bare else wide
            return torch.where(fresh, self._mean(wide, dim, found), wide)
        if any(DOT in atom.hazards for atom in inside if atom in self._group.companions):
            marked = passes_through(self._layouts[path][dim], self._group.analysis.queries)
            is_query = along(dim, [marked[i] for i in found.origin], wide)
            wide = torch.where(is_query, wide * self._guess.queries, wide)
            is_key = along(dim, self._of_companions(path, dim, found), wide) & ~is_query
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
        reset = getattr(getattr(module, "reset_parameters", None), "__func__", None)
        if reset is not None and devices.has_data(wide):
            # Code of the model's own may need arguments, or more than there is: then as without it.
            with suppress(Exception):
                found: Tensor | None = self._reset(owner, module, reset).get(name)
                if found is not None and found.shape == wide.shape:
                    return found.detach()
        if wide.dim() < 2:
            return wide.mean().expand(wide.shape)
        return torch.randn_like(wide) * wide.float().std().to(wide.dtype)

    def _reset(self, owner: str, module: nn.Module, reset: Callable[[nn.Module], None]) -> dict[str, Any]:
        """The parameters and buffers of a copy, at their new sizes, after it was initialised anew."""
        twin = copy.copy(module)
        # With children of its own: it may initialise those as well.
        children = copy.deepcopy(module._modules)
        twin.__dict__ = {**module.__dict__, "_parameters": {}, "_buffers": {}, "_modules": children}
        for register in ("_parameters", "_buffers"):
            for key, tensor in getattr(module, register).items():
                twin.__dict__[register][key] = self._like(f"{owner}.{key}" if owner else key, tensor)
        twin.__dict__["reset_parameters"] = reset.__get__(twin)
        twin.__dict__["reset_parameters"]()
        return {**twin._parameters, **twin._buffers}

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
                f"channels that it counts more. Use a norm with a weight (elementwise_affine=True) there"
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
                "is its eps: name that one eps"
            )
        return [Setting(place, n, None, module.__dict__[n], module.__dict__[n] * self.ratio) for n in small]


def _like(size: int, units: int) -> list[int]:
    """For each new unit an old one, at random, each equally often."""
    order = torch.randperm(size, device="cpu").tolist()
    return [order[i % size] for i in range(units)]


def _shares(old: int, like: Sequence[int]) -> list[float]:
    """For each unit its share of what reads it, where it is one of several copies."""
    copies: dict[int, list[int]] = {unit: [unit] for unit in range(old)}
    for i, unit in enumerate(like):
        copies[unit].append(old + i)
    shares = [1.0] * (old + len(like))
    for units in copies.values():
        if len(units) > 1:
            noise = torch.rand(len(units), dtype=torch.float64, device="cpu") - 0.5
            noise = (noise - noise.mean()) * 2 * _NOISE
            for unit, off in zip(units, noise.tolist(), strict=True):
                shares[unit] = (1.0 + off) / len(units)
    return shares
