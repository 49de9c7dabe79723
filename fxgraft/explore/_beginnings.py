"""How what won an exploration begins: as layers that grow, or anew, as what adds nothing at first.

Each takes the candidate out, and says the commands that let it grow; the last reply tells how it went.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fxgraft import blueprints, commands
from fxgraft.commands import BLEND, CULL, DEEPEN, WIDEN, Command, Reply
from fxgraft.explore.table import Row

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager

Say = Callable[[Command], Reply]


def helps(row: Row) -> bool:
    """Whether what it has learnt in isolation makes the loss lower, beyond two standard errors."""
    return row.contribution is not None and row.contribution > 2 * (row.standard_error or 0.0)


def can_begin_anew(row: Row) -> bool:
    """Whether a new one of the kind adds nothing at first."""
    if row.deepens is not None:
        return True
    known = blueprints.get(row.blueprint)
    return known.branch or known.replaces


def widen(manager: SeedManager, say: Say, row: Row) -> Reply:
    """The layers themselves grow: the host computes what it did, and learns with more channels."""
    assert row.widens is not None
    _take_out(manager, say, row)
    return say(WIDEN(group=row.widens[0], by=row.widens[1]))


def begin_anew(manager: SeedManager, say: Say, row: Row, blend: int) -> Reply:
    """The best place, with a branch or a block that was not taught by the isolated objective.

    Args:
        manager: of the host.
        say: carries a command out.
        row: of the candidate.
        blend: steps for which a block is blended in; a branch adds nothing at first, and is live at once.
    """
    _take_out(manager, say, row)
    if row.deepens is not None:
        stack, at = row.deepens
        return say(DEEPEN(stack=stack, at=[at], blend=max(blend, 1)))
    planted = say(commands.parse({**commands.to_dict(row.command), "isolated": False, "name": None}))
    if planted.refused:
        return planted
    blended = say(BLEND(seed=str(planted.seed), steps=0))
    if blended.refused:
        say(CULL(seed=str(planted.seed)))
        return blended
    return planted


def _take_out(manager: SeedManager, say: Say, row: Row) -> None:
    with manager.no_cooldown():
        say(CULL(seed=str(row.seed)))
