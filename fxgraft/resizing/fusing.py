"""Fossils that become part of the host's own layers, in a live run.

* A linear fossil is merged into the weights of the layer in front of it, as `fxgraft.fold` does.
* A branch of the same form as what it stands beside is joined to it: its channels become the layer's.

Then the fossil is gone, and the region runs its class's own forward again where there is no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.errors import ChannelError, SlotError
from fxgraft.fossils.folding import Folding
from fxgraft.fossils.linear_maps import NotAffineError
from fxgraft.host import engine
from fxgraft.host.channels import subject_of
from fxgraft.host.host import Host
from fxgraft.lifecycle.change import Change
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.resizing.joining import join
from fxgraft.resizing.not_alike import NotAlikeError
from fxgraft.slots.structure import Placement, Structure
from fxgraft_passes import Phase
from fxgraft_passes.channels.comparing import difference, outputs
from fxgraft_passes.channels.replacing import set_tensor


def fuse(
    lifecycle: Lifecycle, names: Sequence[str], optimizers: Sequence[Optimizer], skip: bool
) -> dict[str, str]:
    """Fuse fossils, all of them or none.

    Args:
        lifecycle: of the host.
        names: the fossils.
        optimizers: of the host.
        skip: whether those that cannot be fused are skipped; else they are an error.

    Returns:
        Fossil -> the layer that it has become part of.

    Raises:
        SlotError: one cannot be fused; nothing is changed.
    """
    host = lifecycle.host
    into: dict[str, str] = {}
    with ExitStack() as undo:
        subject = subject_of(host, host.example_call())
        with subject.session():
            before = outputs(subject)
        for name in [p.seed for p in host.structure.placements if p.seed in names]:
            try:
                with ExitStack() as one:
                    into[name] = _fuse(one, host, name, set(into), optimizers)
                    undo.push(one.pop_all())
            except (NotAffineError, NotAlikeError, ChannelError) as why:
                if not skip:
                    raise SlotError(
                        f"seed {name!r} cannot be fused: it {why}. It stays as it is; fuse() without "
                        f"names takes those that can be"
                    ) from why
        if not into:
            return into
        rest = Structure(tuple(p for p in host.structure.placements if p.seed not in into))
        with engine.probing(host, rest, Phase.SETTLED if rest.placements else host.phase):
            subject = subject_of(host, host.example_call())
            with subject.session():
                difference(", ".join(into), before, outputs(subject))
        lifecycle.commit(Change(deaths=tuple(lifecycle.seeds[name] for name in into)))
        undo.pop_all()
    return into


def _fuse(undo: ExitStack, host: Host, name: str, fused: set[str], optimizers: Sequence[Optimizer]) -> str:
    placement = _placement(host, name)
    in_front = _in_front(host, placement, fused)
    if placement.slot.source is not None:
        from fxgraft.resizing.alike import counterparts  # networkx is imported where a branch is joined

        same = counterparts(host, placement, host.graft(name).module)
        return join(undo, host, placement, same, optimizers)
    if in_front is not None:
        raise NotAffineError(f"stands behind {in_front!r}, which is not fused")
    for each in (host, *host._links.followers):
        found = _merge(undo, each, _placement(each, name))
    return found


def _placement(host: Host, name: str) -> Placement:
    return next(p for p in host.structure.placements if p.seed == name)


def _in_front(host: Host, placement: Placement, fused: set[str]) -> str | None:
    """A seed at the same place that runs before, and stays."""
    for other in host.structure.by_region[host.structure.runs_in(placement)]:
        if other.seed == placement.seed:
            return None
        if other.slot.node is placement.slot.node and other.seed not in fused and other.slot.reader is None:
            return other.seed
    return None


def _merge(undo: ExitStack, host: Host, placement: Placement) -> str:
    """A linear fossil, into the weights of the layer in front of it."""
    folding = Folding(host)
    if placement.slot.source is not None:
        raise NotAffineError(f"reads {placement.slot.source.name!r}, and not the value that it is added to")
    name, layer = folding.layer(placement.slot)
    before = {key: p.detach().clone() for key, p in layer._parameters.items() if p is not None}
    undo.callback(_put_back, layer, before)
    with torch.no_grad():
        folding.merge(placement)
    if layer._parameters.keys() - {k for k, p in layer._parameters.items() if p is None} != before.keys():
        raise NotAffineError(f"has a bias, and {name!r} has none: no optimizer would train a new one")
    return name


def _put_back(layer: nn.Module, before: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, parameter in layer._parameters.items():
            if key not in before:
                layer._parameters[key] = None
            elif parameter is not None:
                set_tensor(parameter, before[key], parameter.grad)
