"""The tensors that steer a graft, as the record of its seed has them.

They are buffers, so a ``state_dict`` has them, and one that is loaded writes over them. They follow the
record, which the manager keeps, and not the other way round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft_passes import Graft

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
