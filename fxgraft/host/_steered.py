"""The tensors that steer a host's grafts, where a ``state_dict`` of another moment is loaded.

Alpha and stage are buffers of a graft, so a state has them. Where a manager leads the host, its records hold:
weights come from the state, stage and alpha stay, as the forward that runs, what the optimizers train and the
events of the run belong to these. A host that nobody leads takes them from the state, and runs a forward that
is right for them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxgraft.host import engine
from fxgraft.seeds.steering import STEERING
from fxgraft_passes import Graft, Phase
from fxgraft_passes.bits import same_tensor
from fxgraft_passes.graft import SEEDS

if TYPE_CHECKING:
    from fxgraft.host.host import Host

logger = logging.getLogger("fxgraft")


def receive_steering(host: Host, state: MutableMapping[str, Any], prefix: str) -> None:
    """Put into ``state``, before it is loaded, what has to be in the buffers that steer the grafts."""
    if not host.structure.placements:
        return
    led_by = host._links.led_by() if host._links.led_by is not None else None
    if led_by is None:
        _run_what_fits(host, state, prefix)
        return
    grafts = host.grafts()
    records = led_by.steering() if host._links.borrowed is None else {n: _now(grafts[n]) for n in grafts}
    others = []
    for name, graft in grafts.items():
        if name in records and not _keep(graft, records[name], state, f"{prefix}{SEEDS}.{name}."):
            others.append(name)
    if others:
        logger.warning(
            "a state was loaded in which %s %s at another alpha or in another stage: the weights are those "
            "of the state; alpha and stage stay as the manager has them. SeedManager.load(path, host, ...) "
            "goes back to the whole run of an earlier moment",
            ", ".join(others),
            "is" if len(others) == 1 else "are",
        )


def _keep(graft: Graft, record: Mapping[str, Tensor], state: MutableMapping[str, Any], prefix: str) -> bool:
    """Let ``graft`` keep what the record says; return whether the state says the same."""
    same = True
    for name, value in record.items():
        buffer, key = getattr(graft, name), f"{prefix}{name}"
        theirs = state.get(key)
        if buffer.is_meta or (isinstance(theirs, Tensor) and theirs.shape != value.shape):
            continue  # torch says what is wrong with a shape
        if isinstance(theirs, Tensor) and not theirs.is_meta:
            same = same and same_tensor(theirs.detach().to("cpu", value.dtype), value)
            state[key] = value.to(theirs.device, copy=True)
        with torch.no_grad():  # into a state that is the buffers themselves others may have written
            buffer.copy_(value)
    return same


def _now(graft: Graft) -> dict[str, Tensor]:
    return {name: getattr(graft, name).detach().to("cpu", copy=True) for name in STEERING}


def _run_what_fits(host: Host, state: Mapping[str, Any], prefix: str) -> None:
    """Let a host without a manager run a forward that is right for the stages in ``state``."""
    learns = []
    for placement in host.structure.placements:
        if placement.spec.fossil is not None:
            continue
        flag = host.graft(placement.seed).learning
        theirs = state.get(f"{prefix}{SEEDS}.{placement.seed}.learning")
        if isinstance(theirs, Tensor) and theirs.shape == flag.shape and not (theirs.is_meta or flag.is_meta):
            with torch.no_grad():
                flag.copy_(theirs)  # now: units of a compiled host go by it
        if flag.is_meta:
            return
        learns.append(bool(flag))
    is_wrong = not all(learns) if host.phase is Phase.ISOLATED else any(learns)
    if is_wrong and host.phase in (Phase.ISOLATED, Phase.SETTLED):
        engine.set_structure(host, host.structure, Phase.BLENDED, host.grafts())
