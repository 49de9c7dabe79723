"""A branch joined to what it stands beside: channels behind channels, sums of what both add.

up    (h, d)  rows      [up; up']           down  (d, h)  columns   [down, alpha down']
up    (h)     bias      [up; up']           down  (d)     bias      down + alpha down'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.host import engine
from fxgraft.host.channels import subject_of
from fxgraft.host.host import Host
from fxgraft.host.renewing import Renewal
from fxgraft.optimizers.nested import nested
from fxgraft.resizing._not_alike import NotAlikeError
from fxgraft.resizing.widening import carry_out
from fxgraft.slots.structure import Placement
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.channels.growth import grow
from fxgraft_passes.channels.replacing import set_tensor

Known = dict[tuple[str, str], dict[Host, Renewal]]
"""Fossil, group of channels -> the traces of host and averages with that group grown."""

_Fresh = dict[str, list[tuple[int, tuple[int, ...]]]]
"""Parameter -> the dimensions that have grown, and which indices of each are new."""


def join(
    undo: ExitStack,
    host: Host,
    placement: Placement,
    same: Mapping[str, str],
    optimizers: Sequence[Optimizer],
    known: Known,
) -> str:
    """Let the layers beside a branch have its channels; the branch itself stays where it is.

    Args:
        undo: is given what takes it back.
        host: the host.
        placement: the branch's.
        same: parameter of the host -> that of the branch.
        optimizers: whose state for the branch's parameters goes along.
        known: the traces of an earlier time, which was taken back; those that are made here are added.

    Returns:
        The name of the group that leads.

    Raises:
        NotAlikeError: they do not fit each other.
    """
    theirs = tensors_of(host.graft(placement.seed).module)
    shapes = {path: tuple(theirs[name].shape) for path, name in same.items()}
    fresh: _Fresh = {}
    inside = [g.name for g in engine.untried_channels(host).values() if _is_inside(g, same)]
    names = [name for name in inside if engine.channel_group(host, name).fixed is None]
    for name in names:
        group = engine.channel_group(host, name)
        by = _by(group, shapes, host)
        subject = subject_of(host, host.example_call())
        with subject.session():
            growth = grow(subject, group, by, "zero", 0)
        for path, spreads in growth.spreads.items():
            fresh.setdefault(path, []).extend(
                (dim, tuple(i for i, new in enumerate(found.fresh) if new)) for dim, found in spreads
            )
        traced = known.get((placement.seed, name), {})
        known[placement.seed, name] = carry_out(
            undo, host, growth, subject, optimizers, copies=False, known=traced
        )
    alpha = float(placement.spec.fossil or 0.0)
    for each in (host, *host._links.followers):
        _fill(undo, each, placement.seed, same, fresh, alpha, optimizers if each is host else ())
    return names[0] if names else next(iter(same)).rpartition(".")[0]


def _is_inside(group: ChannelGroup, same: Mapping[str, str]) -> bool:
    return group.fixed is None and all(member.name in same for member in group.members)


def _by(group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]], host: Host) -> int:
    """How many channels the branch has of a group."""
    found = set()
    for member in group.members:
        ours = _tensor(host, member.name).shape[member.dimension]
        found.add((group.atom.size * shapes[member.name][member.dimension]) / ours)
    (units, *others) = found
    if others or units != int(units):
        raise NotAlikeError(f"has channels in another order than {group.name}")
    return int(units) * group.grain


def _fill(
    undo: ExitStack,
    host: Host,
    seed: str,
    same: Mapping[str, str],
    fresh: _Fresh,
    alpha: float,
    optimizers: Sequence[Optimizer],
) -> None:
    theirs = tensors_of(host.graft(seed).module)
    last = _last(same)
    for path, name in same.items():
        ours, other = _tensor(host, path), theirs[name]
        if not isinstance(ours, nn.Parameter) and path not in fresh:
            if not torch.equal(ours, other):
                raise NotAlikeError(f"has other numbers in {name} than {path}, which is no part of channels")
            continue
        share = alpha if path in last else 1.0
        joined = _joined(path, ours.detach(), other.detach(), fresh.get(path, ()), share)
        undo.callback(set_tensor, ours, ours.data, ours.grad)
        set_tensor(ours, joined, ours.grad)
        if path in fresh and isinstance(ours, nn.Parameter):
            _join_moments(undo, path, ours, other, fresh[path], optimizers)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without counts."""
    buffers = {name: buffer for name, buffer in module.named_buffers() if buffer.dim()}
    return {**dict(module.named_parameters()), **buffers}


def _tensor(host: Host, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    found: Tensor = getattr(host.get_submodule(owner), name)
    return found


def _last(same: Mapping[str, str]) -> set[str]:
    """The parameters of the layer that ends the branch: those whose result is added, at its alpha."""
    layers = dict.fromkeys(path.rpartition(".")[0] for path in same)
    end = list(layers)[-1]
    return {path for path in same if path.rpartition(".")[0] == end}


def _joined(
    path: str, ours: Tensor, other: Tensor, grown: Sequence[tuple[int, tuple[int, ...]]], share: float
) -> Tensor:
    if not grown:
        if ours.dim() != 1 or ours.shape != other.shape:
            raise NotAlikeError(f"has a weight for {path} that is no part of channels of its own")
        return ours + share * other
    joined = ours.clone()
    for dim, places in grown:  # what is new in one dimension, and old in another, is nobody's
        joined.index_fill_(dim, torch.tensor(places, device=ours.device), 0)
    joined[_block(grown, ours)] = share * other.to(ours.dtype)
    return joined


def _block(grown: Sequence[tuple[int, tuple[int, ...]]], tensor: Tensor) -> tuple[Tensor, ...]:
    """The indices of what is new in all dimensions that have grown."""
    new = dict(grown)
    axes = [torch.tensor(new.get(i, range(n)), device=tensor.device) for i, n in enumerate(tensor.shape)]
    return torch.meshgrid(*axes, indexing="ij") if len(axes) > 1 else (axes[0],)


def _join_moments(
    undo: ExitStack,
    path: str,
    ours: nn.Parameter,
    other: Tensor,
    grown: Sequence[tuple[int, tuple[int, ...]]],
    optimizers: Sequence[Optimizer],
) -> None:
    for optimizer in optimizers:
        for holder in (optimizer, *nested(optimizer)):
            state, theirs = holder.state.get(ours), holder.state.get(other)
            if not state or not theirs:
                continue
            undo.callback(state.update, dict(state))
            for key, value in list(state.items()):
                found = theirs.get(key)
                if isinstance(value, Tensor) and isinstance(found, Tensor) and value.shape == ours.shape:
                    state[key] = value.clone()
                    state[key][_block(grown, value)] = found.to(value.dtype)
