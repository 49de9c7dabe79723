"""The tensors that control the grafts of a host (alpha, flags), as the records of its seeds have them.

They are buffers, so a ``state_dict`` has them, and one that is loaded writes over them. They follow the
records, which the manager keeps, and not the other way round. Where a manager leads the host and a state of
another moment is loaded, weights come from the state; stage and alpha stay, as the forward that runs, what
the optimizers train and the events of the run belong to these. A host without a manager takes them from the
state, and runs a forward that is right for them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxgraft.host import engine
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft_passes import Graft, Phase
from fxgraft_passes.bits import same_tensor
from fxgraft_passes.graft import SEEDS

if TYPE_CHECKING:
    from fxgraft.host.host import Host


STEERING = ("alpha", "learning", "released")
"""The buffers of a graft by which the operators know stage and alpha of its seed."""


def steering(seed: Seed, graft: Graft) -> dict[str, Tensor]:
    """What the buffers of ``graft`` are while its seed is as the record says.

    Args:
        seed: live or permanent.
        graft: its graft.

    Returns:
        Name of a buffer -> its value, on the CPU; one for each of `STEERING`.
    """
    alphas: tuple[float, ...] = (seed.alpha,)
    if graft.alpha.dim() and seed.ramp is not None:  # the record itself has their mean
        alphas = seed.ramp.alphas(seed.ramp_step)
    if len(alphas) not in (1, graft.alpha.numel()):
        alphas = (seed.alpha,)
    values = torch.tensor(alphas, dtype=graft.alpha.dtype, device="cpu")
    learning, released = seed.stage is Stage.TRAINING, seed.stage in (Stage.HOLDING, Stage.FOSSILIZED)
    return {
        "alpha": values.expand(graft.alpha.numel()).reshape(graft.alpha.shape),
        "learning": torch.tensor(learning, device="cpu"),
        "released": torch.tensor(released, device="cpu"),
    }


def leaving(graft: Graft) -> dict[str, Tensor]:
    """As `steering`, for the graft of a seed that was culled and is still in the graph."""
    return {
        "alpha": torch.zeros_like(graft.alpha, device="cpu"),
        "learning": torch.tensor(False, device="cpu"),
        "released": torch.tensor(False, device="cpu"),
    }


logger = logging.getLogger("fxgraft")


def load_steering(host: Host, state: MutableMapping[str, Any], prefix: str) -> None:
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
    """Make ``graft`` keep what the record says; return whether the state says the same."""
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
    """In a host without a manager, run a forward that fits the stages in ``state``."""
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
