"""The end of an exploration: each candidate is measured, then all are ranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from fxgraft.distributed.peers import Peers
from fxgraft.explore._candidate_state import CandidateState
from fxgraft.explore._example_run import block_calls
from fxgraft.explore._step_cost import call_at, step_ms
from fxgraft.explore.exploration_settings import ExplorationSettings
from fxgraft.explore.measuring import Evaluate, Measured, contributions
from fxgraft.explore.scoring import Ranking
from fxgraft.explore.table import MEASURED
from fxgraft.host.host import Host
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.seeds.seed import Seed

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager


def measure(
    entries: Sequence[CandidateState],
    manager: SeedManager,
    lifecycle: Lifecycle,
    evaluate: Evaluate,
    settings: ExplorationSettings,
) -> None:
    """Measure the candidates that learn; one that cannot be measured fails with the reason."""
    seeds = {entry.seed: manager.seeds[entry.seed] for entry in entries if entry.seed}
    found = contributions(
        manager.host,
        list(seeds.values()),
        evaluate,
        at=settings.at,
        repeats=settings.repeats,
        alone=manager.peers.folder is None,
        mean=manager.peers.mean,
        inactivity=lifecycle.inactivity,
    )
    for entry in entries:
        assert entry.seed is not None
        _take_in(entry, seeds[entry.seed], found[entry.seed], manager, settings)
    measured = [entry for entry in entries if entry.status == MEASURED]
    _time([(entry, seeds[str(entry.seed)]) for entry in measured], manager.host)


def _take_in(
    entry: CandidateState, seed: Seed, found: Measured, manager: SeedManager, settings: ExplorationSettings
) -> None:
    entry.trained_steps, entry.found = seed.trained_steps, found
    # Each rank has seen the gradients of its own batches.
    shared = manager.peers.mean(math.nan if entry.expected is None else entry.expected)
    entry.expected = None if math.isnan(shared) else shared
    if found.contribution is None:
        return entry.fail(found.reason)
    if not seed.trained_steps and settings.steps > settings.frozen_steps:
        return entry.fail(f"it was not trained: {seed.did_not_run or 'nothing updates its parameters'}")
    entry.status = MEASURED
    return None


def _time(measured: Sequence[tuple[CandidateState, Seed]], host: Host) -> None:
    """Time each candidate by itself; a block is called as the one in front of it is in the example call."""
    blocks = {entry.depth.block for entry, _ in measured if entry.depth is not None}
    calls = block_calls(host, blocks) if blocks else {}
    for entry, seed in measured:
        assert seed.module is not None
        if entry.depth is None:
            entry.step_cost = step_ms(seed.module, call_at(host.site(seed.slot, seed.source), seed.module))
        elif (call := calls.get(entry.depth.block)) is not None:
            with suppress(Exception):  # it has learnt: it runs, but perhaps not outside of its host
                entry.step_cost = step_ms(seed.module, call)


def rank(entries: Sequence[CandidateState], score: Ranking, peers: Peers) -> None:
    """Give the measured candidates their scores, the same on all ranks."""
    found = score([entry.row() for entry in entries])
    scores = [None if score is None or math.isnan(score) else float(score) for score in found]
    # Clocks and norms differ between ranks; the order must not.
    for entry, shared in zip(entries, peers.share(scores), strict=True):
        entry.score = shared
