"""Restarts the best candidate from initial values that add nothing, where what it learned does not help.

The candidate is culled, and commands germinate a new one; the last reply has the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from fxgraft import blueprints
from fxgraft.commands import BLEND, CULL, DEEPEN, SEED, Command, Reply
from fxgraft.explore.table import Row

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager

CarryOut = Callable[[Command], Reply]


def can_restart(row: Row) -> bool:
    """Whether a new candidate of the kind adds nothing at first."""
    if row.deepens is not None or row.widens is not None:
        return True
    known = blueprints.get(row.blueprint)
    return known.branch or known.replaces


def restart(manager: SeedManager, carry_out: CarryOut, row: Row, blend: int) -> Reply:
    """Replace a candidate by a new one of its kind, which learns with the host, not in isolation.

    Args:
        manager: of the host.
        carry_out: carries out a command.
        row: of the candidate.
        blend: steps for which a block is blended in; a branch adds nothing at first, and is live at once.
    """
    seed = manager.seeds[str(row.seed)]
    with manager.no_cooldown():
        carry_out(CULL(seed=seed.name))
    if row.deepens is not None:
        stack, at = row.deepens
        return carry_out(DEEPEN(stack=stack, at=[at], blend=max(blend, 1)))
    command = row.command
    if not isinstance(command, SEED):  # a branch in the place of wider layers
        command = SEED(slot=seed.slot, blueprint=seed.blueprint, source=seed.source, config=dict(seed.config))
    germinated = carry_out(replace(command, isolated=False, name=None))
    if germinated.refused:
        return germinated
    blended = carry_out(BLEND(seed=str(germinated.seed), steps=0))
    if blended.refused:
        carry_out(CULL(seed=str(germinated.seed)))
        return blended
    return germinated
