"""Gradient clipping by owner: a seed's large gradient must not shrink the host's through a common norm."""

from __future__ import annotations

from torch.nn.utils import clip_grad_norm_

from fxgraft.manager.manager import SeedManager


def clip_per_owner(manager: SeedManager, max_norm: float) -> None:
    """Clip the gradients of the host to the norm ``max_norm``, and those of each live seed separately, too.

    The host's are then, to the bit, what ``clip_grad_norm_(model.parameters(), max_norm)`` makes of them
    in a run without seeds.

    Args:
        manager: the manager of the host.
        max_norm: the largest 2-norm of the gradients of one owner.

    Raises:
        TypeError: ``manager`` is not a `SeedManager`.
    """
    if not isinstance(manager, SeedManager):
        raise TypeError(f"manager: expected a SeedManager; got {type(manager).__name__}")
    clip_grad_norm_(list(manager.host.host_parameters()), max_norm)
    for name in manager.seeds:
        if owned := manager.registry.parameters(name):
            clip_grad_norm_(owned, max_norm)
