"""The candidates of an exploration are germinated by commands: branches in one change, blocks in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxgraft.commands import DEEPEN, Command
from fxgraft.explore._candidate_state import CandidateState

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager


def germinate(manager: SeedManager, entries: Sequence[CandidateState]) -> None:
    """Germinate all of these; each that cannot be fails with the reason.

    The last block of a stack first: the places of the others are then the same one by one, from a log say.
    """
    blocks = [entry for entry in entries if entry.depth is not None]
    blocks.sort(key=lambda entry: entry.depth.at if entry.depth else 0, reverse=True)
    for part in ([entry for entry in entries if entry.depth is None], blocks):
        replies = manager.carry_out_together([_command(entry) for entry in part])
        for entry, reply in zip(part, replies, strict=True):
            if reply.accepted:
                entry.seed = reply.seed
            else:
                entry.fail(reply.reason)


def _command(entry: CandidateState) -> Command:
    if entry.depth is None:
        return entry.command
    return DEEPEN(stack=entry.depth.stack, at=[entry.depth.at], isolated=True)
