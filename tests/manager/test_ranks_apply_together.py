"""Ranks apply the same changes in the same step, whatever the compiler process of each does, and when.

The ranks are in one process here, and exchange between steps; the jobs of each follow a random script.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.commands.inbox import Inbox
from fxgraft.compiling import helper
from fxgraft.distributed.peers import Order, SingleProcess
from fxgraft.host import engine
from fxgraft.manager import _core
from tests.harness import counting_backend
from tests.seed_modules import Drawing

ASKING, STEPS = 30, 400
"""In how many steps changes are asked for, and after how many all must be applied."""

CHANGES = ("germinate", "germinate", "cull", "blend", "fossilize", "act", "convert", "at once")


class Exchange:
    """What ranks have said, and hear from the next `turn` on."""

    def __init__(self, size: int):
        self.said: list[dict[str, Any]] = [{} for _ in range(size)]
        self.heard: list[dict[str, Any]] = [{} for _ in range(size)]

    def turn(self) -> None:
        self.heard, self.said = copy.deepcopy(self.said), [{} for _ in self.said]


class Peer(SingleProcess):
    """One rank of several, of which each runs to the end of its step in turn."""

    def __init__(self, exchange: Exchange, rank: int):
        super().__init__()
        self.rank, self.size = rank, len(exchange.said)
        self._exchange = exchange
        self._forgotten: set[str] = set()

    def send(self, topic: str, value: Any) -> None:
        self._exchange.said[self.rank][topic] = value

    def received(self, topic: str) -> Sequence[Any]:
        return [None if topic in self._forgotten else said.get(topic) for said in self._exchange.heard]

    def withdraw(self, topic: str) -> None:
        self._exchange.said[self.rank].pop(topic, None)
        self._forgotten.add(topic)

    def settle(self) -> None:
        self._forgotten = set()

    def orders(self, inbox: Inbox) -> Iterator[Order]:
        yield from ()


class Job:
    """Stands for `fxgraft.compiling.job.Job`: parts come, or fail, whenever ``draw`` says so."""

    def __init__(self, tasks: Sequence[Any], draw: random.Random):
        self._tasks, self._draw = tasks, draw
        self._required, self._rest = draw.randrange(4), draw.randrange(4)
        self._fate = draw.choice(["good"] * 6 + ["unavailable", "failed"])
        self.failed: dict[int, str] = {}

    def take(self) -> bool:
        if self._fate != "good" or self._draw.random() < 0.5:
            return False
        if self._required:
            self._required -= 1
        elif self._rest:
            self._rest -= 1
        else:
            return False
        return True

    @property
    def is_ready(self) -> bool:
        return self._fate == "good" and not self._required

    @property
    def is_over(self) -> bool:
        return self._fate != "good" or not (self._required or self._rest)

    has_all_required = is_ready

    @property
    def unavailable(self) -> str | None:
        return "it is gone" if self._fate == "unavailable" else None

    @property
    def failure(self) -> str | None:
        return "it has ended" if self._fate == "failed" else None

    def leave_rest(self) -> None:
        for task in self._tasks:
            task.leave()

    def wait(self, timeout: float | None = None) -> None:
        pass

    def stop(self) -> None:
        if self.is_over:
            self.leave_rest()


class Rank:
    """One of the ranks, with a host like the others'."""

    def __init__(self, peer: Peer, patch: pytest.MonkeyPatch):
        torch.manual_seed(0)
        self.host = fxgraft.trace(
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), (torch.randn(6, 4),)
        )
        self.host.compile(backend=counting_backend("eager"))
        optimizer = torch.optim.SGD(self.host.parameters(), 1e-2)
        patch.setattr(_core, "peers_of", lambda *a, **k: peer)
        self.manager = SeedManager(self.host, optimizer, check_every=0)
        self.manager._lifecycle.cold = True  # nothing here is about code: none is compiled at the swap
        with torch.compiler.set_stance("force_eager"):  # the call is known, and nothing is compiled for it
            self.host(torch.randn(6, 4)).sum().backward()

    @property
    def state(self) -> tuple[Any, ...]:
        return self.manager._state(), self.host.structure.key, [*self.manager._background.waiting.pending]

    def wait_for_modules(self, draw: random.Random) -> None:
        for pending in self.manager._background.waiting.pending.values():
            if draw.random() < 0.7:
                pending.wait(30)


@pytest.mark.usefixtures("fresh_compiler")
@given(size=st.integers(2, 4), number=st.integers(0, 2**32))
def test_all_ranks_have_the_same_structure_after_each_step(size: int, number: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _run(size, number, patch)


def _run(size: int, number: int, patch: pytest.MonkeyPatch) -> None:
    exchange = Exchange(size)
    ranks = [Rank(Peer(exchange, rank), patch) for rank in range(size)]
    own = [random.Random(f"{number} {rank}") for rank in range(size)]
    together = random.Random(number)
    of_host = {id(rank.host): draw for rank, draw in zip(ranks, own, strict=True)}
    patch.setattr(
        engine, "compile_in_helper", lambda host, structure, grafts, tasks: Job(tasks, of_host[id(host)])
    )
    patch.setattr(helper, "unavailable", lambda: None)
    for step in range(STEPS):
        if step >= ASKING and not ranks[0].manager._background.waiting.words:
            break  # all is applied, or was given up
        if step < ASKING and together.random() < 0.5:
            change = together.choice(CHANGES)
            chosen = together.randrange(10)
            for rank in ranks:
                _ask(rank.manager, change, chosen, f"{step}")
        exchange.turn()
        for rank, draw in zip(ranks, own, strict=True):
            rank.wait_for_modules(draw)
            rank.manager.step()
        assert all(rank.state == ranks[0].state for rank in ranks), (step, [rank.state for rank in ranks])
    else:
        raise AssertionError(ranks[0].manager._background.waiting.words)


def _ask(manager: SeedManager, change: str, chosen: int, name: str) -> None:
    """What every rank's program asks for."""
    germinated = [n for n, seed in manager.seeds.items() if seed.stage is not Stage.FOSSILIZED]
    one = germinated[chosen % len(germinated)] if germinated else None
    stage = manager.seeds[one].stage if one is not None else None
    if change == "germinate":
        manager.germinate(("0", "1", "2")[chosen % 3], _build, name=name, wait=False)
    elif change == "at once":
        manager.germinate("0", _build, name=name)
    elif change == "act":
        with manager.together(wait=False):
            manager.germinate("1", _build, name=name)
            if one is not None:
                manager.cull(one)
    elif change == "convert":
        manager.host.to(torch.float64 if chosen % 2 else torch.float32)
    elif one is not None and change == "cull":
        manager.cull(one, wait=False)
    elif one is not None and change == "blend" and stage is Stage.TRAINING:
        manager.blend(one, steps=1 + chosen, force=True)
    elif one is not None and change == "fossilize" and stage is Stage.HOLDING:
        manager.fossilize(one, wait=False, force=True)


def _build(slot: fxgraft.Slot) -> nn.Module:
    return Drawing()
