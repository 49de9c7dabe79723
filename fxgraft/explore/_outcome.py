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
from fxgraft.explore.measuring import Evaluate, contributions
from fxgraft.explore.scoring import Ranking
from fxgraft.explore.table import LEARNING, MEASURED
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
    """Measure the candidates that learn; one that cannot be measured fails with the reason.

    One that was not trained fails without an evaluation.
    """
    for entry in entries:
        _look_at_training(entry, manager.seeds[str(entry.seed)], manager.peers, settings)
    entries = [entry for entry in entries if entry.status == LEARNING]
    seeds = {str(entry.seed): manager.seeds[str(entry.seed)] for entry in entries}
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
        entry.found = found[str(entry.seed)]
        if entry.found.contribution is None:
            entry.fail(entry.found.reason)
        else:
            entry.status = MEASURED
    measured = [entry for entry in entries if entry.status == MEASURED]
    _time([(entry, seeds[str(entry.seed)]) for entry in measured], manager.host)


def _look_at_training(entry: CandidateState, seed: Seed, peers: Peers, settings: ExplorationSettings) -> None:
    entry.trained_steps = seed.trained_steps
    # Each rank has seen the gradients of its own batches.
    shared = peers.mean(math.nan if entry.expected is None else entry.expected)
    entry.expected = None if math.isnan(shared) else shared
    # All ranks evaluate the same: one that has learnt on any of them.
    if settings.steps > settings.frozen_steps and not peers.mean(seed.trained_steps):
        why = "no gradient reached it" if entry.gradient is None else "nothing updates its parameters"
        entry.fail(f"it was not trained: {seed.did_not_run or why}")


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
