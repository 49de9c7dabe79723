"""The candidates of an exploration are germinated: branches in one change, blocks in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxgraft.errors import FxGraftError
from fxgraft.explore._entry import CandidateState
from fxgraft.explore.table import LEARNING

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager


def plant(manager: SeedManager, entries: Sequence[CandidateState]) -> None:
    """Germinate all of these; each that cannot be fails with the reason."""
    branches = [entry for entry in entries if entry.depth is None]
    replies = manager.carry_out_together([entry.command for entry in branches])
    for entry, reply in zip(branches, replies, strict=True):
        if reply.accepted:
            entry.seed = reply.seed
        else:
            entry.fail(reply.reason)
    _insert(manager, [entry for entry in entries if entry.depth is not None])


def _insert(manager: SeedManager, entries: Sequence[CandidateState]) -> None:
    """The blocks, isolated, in one act; one by one where it fails as a whole."""
    if not entries:
        return
    try:
        with manager.together():
            for entry in entries:
                _deepen(manager, entry)
    except FxGraftError:  # what can be seen of the graph only: nothing of the act is there
        for entry in entries:
            entry.status, entry.reason = LEARNING, ""
            _deepen(manager, entry)


def _deepen(manager: SeedManager, entry: CandidateState) -> None:
    assert entry.depth is not None
    try:
        (seed,) = manager.deepen(entry.depth.stack, at=[entry.depth.at], isolated=True)
        entry.seed = seed.name
    except FxGraftError as error:
        entry.seed = None
        entry.fail(f"{type(error).__name__}: {error}")
