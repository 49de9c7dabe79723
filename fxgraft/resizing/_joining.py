"""A branch joined to the layers parallel to it: channels are concatenated, biases of sums are added.

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
from fxgraft.host.retracing import Retrace
from fxgraft.resizing._joined_state import Carried, carried, check_owner
from fxgraft.resizing._same_settings import StructureMismatchError, tensors_of
from fxgraft.resizing.widening import carry_out
from fxgraft.slots.structure import Placement
from fxgraft.util.hooks import hooked_parameter
from fxgraft.util.tensors import lost_in_rounding
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.channels.growth import grow
from fxgraft_passes.channels.recording import Recording, tensors_in
from fxgraft_passes.channels.replacing import set_tensor

Known = dict[tuple[str, str], dict[Host, Retrace]]
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
    """Add the channels of a branch to the layers parallel to it; the branch itself stays where it is.

    Args:
        undo: gets the callbacks that revert it.
        host: the host.
        placement: the branch's.
        same: parameter of the host -> that of the branch.
        optimizers: whose state for the branch's parameters goes along.
        known: the traces of an earlier attempt that was reverted; those that are made here are added.

    Returns:
        The name of the group that leads.

    Raises:
        StructureMismatchError: they do not fit each other.
    """
    branch = host.graft(placement.seed).module
    if (hooked := hooked_parameter(branch)) is not None:
        raise StructureMismatchError(hooks_are_lost(hooked, next(iter(same))))
    theirs = tensors_of(branch)
    alpha = float(placement.spec.fossil or 0.0)
    last = _last(host, same) if alpha != 1.0 else set()
    shares = {path: alpha if path in last else 1.0 for path in same}
    _check_learning(host, same, theirs, optimizers)
    moments = _moments(host, same, theirs, shares, optimizers)
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
    for each in (host, *host._links.followers):
        _fill(undo, each, placement.seed, same, fresh, shares)
    for path, found in moments.items():
        for one in found if path in fresh else ():
            _join_moments(undo, one, fresh[path])
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
        raise StructureMismatchError(f"has channels in another order than {group.name}")
    return int(units) * group.grain


def _fill(
    undo: ExitStack,
    host: Host,
    seed: str,
    same: Mapping[str, str],
    fresh: _Fresh,
    shares: Mapping[str, float],
) -> None:
    theirs = tensors_of(host.graft(seed).module)
    for path, name in same.items():
        ours, other = _tensor(host, path), theirs[name]
        if not isinstance(ours, nn.Parameter) and path not in fresh:
            if not torch.equal(ours, other):
                raise StructureMismatchError(
                    f"has other numbers in {name} than {path}, which is no part of channels"
                )
            continue
        joined = _joined(path, ours.detach(), other.detach(), fresh.get(path, ()), shares[path])
        undo.callback(set_tensor, ours, ours.data, ours.grad)
        set_tensor(ours, joined, _gradient(ours, other, fresh.get(path, ()), shares[path]))


def _tensor(host: Host, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    module = host.get_submodule(owner)  # not as an attribute: a host has other things of some names
    found = module._parameters.get(name)
    return module.get_buffer(name) if found is None else found


def _check_learning(
    host: Host, same: Mapping[str, str], theirs: Mapping[str, Tensor], optimizers: Sequence[Optimizer]
) -> None:
    """Raise `StructureMismatchError` where one of two parameters trains, and the other does not."""
    for path, name in same.items():
        ours, other = _tensor(host, path), theirs[name]
        if ours.requires_grad != other.requires_grad:
            raise StructureMismatchError(freezing(path, ours.requires_grad))
        if isinstance(ours, nn.Parameter) and isinstance(other, nn.Parameter):
            check_owner(path, [ours], [other], optimizers)


def hooks_are_lost(name: str, into: str) -> str:
    """Why a fossil with hooks on a parameter cannot become part of another one."""
    return (
        f"has hooks on its parameter {name}, which is gone once it is a part of {into}, and they with it. "
        f"Expected none: remove them first (handle.remove()), and put on {into} what is to stay"
    )


def freezing(path: str, trains: bool) -> str:
    """Why what trains and what is frozen cannot become one."""
    both = f"is frozen, and {path} trains" if trains else f"trains, and {path} is frozen"
    return (
        f"{both}: as one, both would train or none. Expected the same of both: set requires_grad of one as "
        f"that of the other first, and let an optimizer have what trains"
    )


def _moments(
    host: Host,
    same: Mapping[str, str],
    theirs: Mapping[str, Tensor],
    shares: Mapping[str, float],
    optimizers: Sequence[Optimizer],
) -> dict[str, list[Carried]]:
    """What optimizers keep for the branch, by the parameter that it goes to."""
    found = {}
    for path, name in same.items():
        ours, other = _tensor(host, path), theirs[name]
        if isinstance(ours, nn.Parameter) and isinstance(other, nn.Parameter):
            found[path] = carried(path, ours, other, shares[path], optimizers)
    return found


def _last(host: Host, same: Mapping[str, str]) -> set[str]:
    """The parameters of the layer that runs last: those whose result is added, at the branch's alpha."""
    subject = subject_of(host, host.example_call())
    recording = Recording()
    with subject.session():
        used = {id(tensor): path for path, tensor in subject.record({}, False, recording).items()}
    end = ""
    for operation in recording.operations:
        for tensor in tensors_in((operation.args, operation.kwargs)):
            if (path := used.get(id(tensor))) in same:
                end = str(path).rpartition(".")[0]
    return {path for path in same if path.rpartition(".")[0] == end}


def _joined(
    path: str, ours: Tensor, other: Tensor, grown: Sequence[tuple[int, tuple[int, ...]]], share: float
) -> Tensor:
    if not grown:
        if ours.dim() != 1 or ours.shape != other.shape:
            raise StructureMismatchError(f"has a weight for {path} that is no part of channels of its own")
        if ours.is_meta:
            return ours
        exact = ours.cpu().double() + share * other.cpu().double()  # not each device has the dtype
        if (why := lost_in_rounding(path, ours.cpu(), exact)) is not None:
            raise StructureMismatchError(why)
        return exact.to(ours.device, ours.dtype)
    joined = ours.clone()
    for dim, places in grown:  # what is new in one dimension, and old in another, belongs to neither: zero
        joined.index_fill_(dim, torch.tensor(places, device=ours.device), 0)
    block = _block(grown, ours)
    if (place := joined[block].shape) != other.shape:
        raise StructureMismatchError(
            f"has a tensor of shape {tuple(other.shape)} for {path}, where one of {tuple(place)} would fit: "
            f"layers may differ in channels only"
        )
    joined[block] = share * other.to(ours.dtype)
    return joined


def _block(grown: Sequence[tuple[int, tuple[int, ...]]], tensor: Tensor) -> tuple[Tensor, ...]:
    """The indices of what is new in all dimensions that have grown."""
    new = dict(grown)
    axes = [torch.tensor(new.get(i, range(n)), device=tensor.device) for i, n in enumerate(tensor.shape)]
    return torch.meshgrid(*axes, indexing="ij") if len(axes) > 1 else (axes[0],)


def _gradient(
    ours: Tensor, other: Tensor, grown: Sequence[tuple[int, tuple[int, ...]]], share: float
) -> Tensor | None:
    """The gradient that waits for a step, of both: what is multiplied by alpha has 1 / alpha of that."""
    if other.grad is None or not grown:  # what is added to something has the gradient of this
        is_missing = ours.grad is None and other.grad is not None and share
        return (other.grad / share).to(ours.dtype) if is_missing and other.grad is not None else ours.grad
    joined = torch.zeros_like(ours) if ours.grad is None else ours.grad.clone()
    joined[_block(grown, ours)] = (other.grad / share if share else 0 * other.grad).to(joined.dtype)
    return joined


def _join_moments(undo: ExitStack, moments: Carried, grown: Sequence[tuple[int, tuple[int, ...]]]) -> None:
    state = moments.ours
    undo.callback(state.update, dict(state))
    for key, found in moments.found.items():
        state[key] = state[key].clone()
        state[key][_block(grown, state[key])] = found.to(state[key].dtype)
