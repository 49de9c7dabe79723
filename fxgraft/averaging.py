"""Averages of a host's weights (EMA, SWA) that follow its structure.

``torch.optim.swa_utils.AveragedModel`` copies the host once and from then on pairs parameters by
their order, without a check: when the host has other seeds than the copy, it averages one parameter
into another. `follow` lets each change of the host happen to the copy too, so that they stay pairs.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import nn

from fxgraft.errors import FxGraftError
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.lifecycle.building import surroundings
from fxgraft.slots.structure import Placement, Structure
from fxgraft_passes import Graft, Phase
from fxgraft_passes.graft import SEEDS

_GLANCES = (Phase.DETACHED, Phase.SHADOW)
"""Phases that a host runs temporarily: an average ignores them."""


def follow(host: nn.Module, averaged: nn.Module) -> None:
    """Make an average of a host change its structure with the host, from now on.

    Call it right after making the average. Without it the average lacks the new parameters, and cannot be
    used any more after a seed is culled::

        averaged = AveragedModel(host, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        follow(host, averaged)

    It works as well for an average of your own: a ``copy.deepcopy(host)`` that you update in pairs of
    ``parameters()`` (and of ``buffers()``: a seed's alpha is one). If the host has grown before the call,
    the copy gets the seeds that it lacks; those that it has must be the host's first ones.

    The average of a new seed begins with the seed's values; that of a block inserted by `SeedManager.deepen`
    with the average of the block that it is a copy of, but for the output layers that are zeroed. Averages of
    seeds that stay are kept. The average of a culled seed is removed. A seed's alpha and stage, which are
    buffers, are copied at the next ``update_parameters``. The average runs in eager mode, also where the host
    is compiled.

    Call it again for a copy of the host, or of the average.

    Args:
        host: a `Host`, or a module around one (``DistributedDataParallel``).
        averaged: the ``AveragedModel`` of it, or another module around a deep copy of it.

    Raises:
        TypeError: ``host`` or ``averaged`` contains no `Host`.
        ValueError: ``averaged`` is no copy of ``host``, or was made before it grew wider, or has seeds that
            the host does not have, or averages buffers (``use_buffers=True``): an average of stages and of
            counters has no meaning.
    """
    source, twin = _host_in(host, "host"), _host_in(averaged, "averaged")
    if getattr(averaged, "use_buffers", False):
        raise ValueError(
            "averaged: expected use_buffers=False, which copies buffers; got True, which would average "
            "a seed's stage. For batch norm use torch.optim.swa_utils.update_bn"
        )
    _check_copy(source, twin)
    _mirror(source, twin)
    source._links.followers[twin] = _mirror


def _host_in(module: Any, argument: str) -> Host:
    given = module
    while not isinstance(module, Host):
        module = getattr(module, "module", None)
        if module is None:
            raise TypeError(
                f"{argument}: expected a fxgraft.Host or a module around one; got {type(given).__name__}"
            )
    return module


def _check_copy(host: Host, twin: Host) -> None:
    if twin is host:
        raise ValueError("averaged: expected a copy of the host; got the host itself")
    if _own_slots(twin) != _own_slots(host):
        raise ValueError("averaged: expected a copy of the host; its slots are others")
    _check_sizes(host, twin)
    ours, theirs = _seeds(host), _seeds(twin)
    if ours[: len(theirs)] != theirs:  # what lacks the last ones was paired rightly so far
        raise ValueError(
            f"averaged: expected the seeds that the host has now, or the first of them, "
            f"{[s[0] for s in ours]}; got {[s[0] for s in theirs]}: make the average anew, and let it follow "
            f"at once"
        )


def _check_sizes(host: Host, twin: Host) -> None:
    """A host that has grown wider is another model than a copy of an earlier time."""
    ours, theirs = (
        {name: tuple(tensor.shape) for name, tensor in chain(root.named_parameters(), root.named_buffers())}
        for root in (engine.trees(host)[0], engine.trees(twin)[0])
    )
    for name in ours.keys() | theirs.keys():
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"averaged: expected a copy of the host as it is now, where {name} has shape "
                f"{ours.get(name)}; got {theirs.get(name)}: the host has grown wider since. Make the average "
                f"anew, and let it follow at once"
            )


def _own_slots(host: Host) -> list[str]:
    """The slots of the model; those in inserted blocks come and go with these."""
    return [name for name, slot in host.slots.items() if not slot.region.startswith(f"{SEEDS}.")]


def _seeds(host: Host) -> list[tuple[str, str, object]]:
    return [(p.seed, p.slot.name, p.kind) for p in host.structure.placements]


def _mirror(host: Host, twin: Host) -> None:
    """Give ``twin`` the structure and phase of ``host``, with modules of its own."""
    if host.phase in _GLANCES:
        return
    have, grafts = twin.grafts(), dict[str, Graft]()
    structure = Structure()
    for ours in host.structure.placements:
        if ours.slot.region not in twin.regions:
            engine.ensure_block_regions(twin, structure, grafts)  # it is in a block that came before
        placement = replace(ours, slot=twin.site(*ours.slot.names))
        structure = Structure((*structure.placements, placement))
        grafts[ours.seed] = have.get(ours.seed) or _copied(host, twin, placement)
    engine.prepare(twin, structure, (host.phase,))
    engine.set_structure(twin, structure, host.phase, grafts)
    twin.structure_entry = host.structure_entry  # their states have the same entries


def _copied(host: Host, twin: Host, placement: Placement) -> Graft:
    try:
        graft = copy.deepcopy(host.graft(placement.seed))
    except Exception as error:
        raise FxGraftError(
            f"seed {placement.seed!r}: the host's average needs a copy of its module, which cannot be "
            f"copied ({type(error).__name__}: {error})"
        ) from error
    there = surroundings(twin, placement.slot)
    if there.dtype != surroundings(host, placement.slot).dtype:
        graft.to(there.dtype)
    return graft.to(there.device).train(there.training)
