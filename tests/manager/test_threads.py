"""Commands of other threads: queued, carried out between two steps, in order, each once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import Stage
from fxgraft.commands import BLEND, CULL, PAUSE, SEED, Reply, inbox
from fxgraft.errors import StageError
from tests.harness import assert_same_bits, observed_call, snapshot

DEADLINE = 60.0


class Training:
    """A small model in training. Whatever a hook finds wrong in the middle of a step is in ``torn``."""

    def __init__(self, *sinks: Callable[[Any], None], **options: Any):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        self.batch = torch.randn(5, 4)
        self.host = fxgraft.trace(self.model, (self.batch,))
        self.optimizer = torch.optim.SGD(self.host.parameters(), 1e-2, momentum=0.9)
        self.events: list[Any] = []
        self.manager = fxgraft.SeedManager(
            self.host, self.optimizer, sinks=[self.events.append, *sinks], **options
        )
        self.torn: list[str] = []

    def step(self) -> None:
        before = self.host.structure
        self.optimizer.zero_grad()
        loss = self.host(self.batch).square().mean()
        loss.backward()
        self.optimizer.step()
        if self.host.structure is not before:
            self.torn.append("the structure changed inside a step")
        self.manager.step(loss)


def in_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(DEADLINE)


def test_a_command_from_another_thread_waits_for_the_end_of_the_step() -> None:
    training = Training()
    before = snapshot(training.host, training.batch, [training.optimizer])
    reply = in_thread(lambda: training.manager.handle(SEED(slot="1", blueprint="mlp", name="a", id="7")))
    assert reply == Reply(True, reply.reason, "SEED", "a", "7", queued=True)
    assert "manager.step()" in reply.reason
    assert not training.manager.seeds
    assert_same_bits(snapshot(training.host, training.batch, [training.optimizer]), before, "the host")
    training.step()
    assert training.manager.seeds["a"].stage is Stage.TRAINING
    assert training.manager.seeds["a"].trained_steps == 0  # as if germinated right after the step


def test_the_training_thread_is_answered_at_once() -> None:
    training = Training()
    training.step()
    reply = training.manager.handle(SEED(slot="1", blueprint="mlp", name="a"))
    assert reply
    assert not reply.queued
    assert training.manager.seeds["a"].stage is Stage.TRAINING


def test_submit_gives_the_final_reply_from_any_thread() -> None:
    training = Training()
    here = training.manager.submit(SEED(slot="1", blueprint="mlp", name="a"))
    there = in_thread(lambda: training.manager.submit({"type": "BLEND", "seed": "a", "steps": 2}))
    refused = in_thread(lambda: training.manager.submit({"type": "CULL", "seed": "nobody"}))
    assert not any(future.done() for future in (here, there, refused))
    training.step()
    assert here.result(0)
    assert there.result(0)
    assert training.manager.seeds["a"].stage is Stage.BLENDING
    assert refused.result(0).refused
    assert "nobody" in refused.result(0).reason


@pytest.mark.parametrize("message", ["{", {"type": "GROW"}, {"type": "CULL"}, b"\xff", 7])
def test_what_cannot_be_read_is_refused_at_once(message: Any) -> None:
    training = Training()
    assert in_thread(lambda: training.manager.handle(message)).refused
    assert training.manager.submit(message).result(0).refused
    assert len(training.manager._inbox) == 0


def test_a_waiting_command_can_be_taken_back() -> None:
    training = Training()
    first = training.manager.submit(SEED(slot="1", blueprint="mlp", name="a"))
    second = training.manager.submit(SEED(slot="1", blueprint="mlp", name="b"))
    assert first.cancel()
    training.step()
    assert list(training.manager.seeds) == ["b"]
    assert not second.cancel()


def test_one_id_is_carried_out_once_however_often_it_comes() -> None:
    training = Training()
    message = SEED(slot="1", blueprint="mlp", id="one")
    futures = [training.manager.submit(message) for _ in range(3)]
    in_thread(lambda: training.manager.handle(message))
    training.step()
    assert len(training.manager.seeds) == 1
    assert len({future.result(0) for future in futures}) == 1
    assert training.manager.handle(message) == futures[0].result(0)


def test_a_flood_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_WAITING", 5)
    training = Training()

    def flood() -> list[Reply]:
        return [training.manager.handle(PAUSE(seed="nobody")) for _ in range(8)]

    replies = in_thread(flood)
    assert [reply.accepted for reply in replies] == [True] * 5 + [False] * 3
    assert "5 commands wait" in replies[-1].reason
    training.step()
    assert in_thread(flood)[0].accepted


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.germinate("1", "mlp"),
        lambda m: m.germinate("1", "mlp", wait=False),
        lambda m: m.blend("a"),
        lambda m: m.cull("a"),
        lambda m: m.cull_all(),
        lambda m: m.fossilize("a"),
        lambda m: m.pause("a"),
        lambda m: m.resume("a"),
        lambda m: m.measure("a", lambda: 0.0),
        lambda m: m.at_alpha("a", 1.0),
        lambda m: m.shadow(),
        lambda m: m.save("never-written"),
    ],
)
def test_a_direct_call_from_another_thread_is_refused(call: Callable[[Any], Any]) -> None:
    training = Training()
    seed = training.manager.germinate("1", "mlp", name="a")
    training.step()
    before = snapshot(training.host, training.batch, [training.optimizer])
    with pytest.raises(StageError, match=r"trained in thread 'MainThread'.*manager.submit"):
        in_thread(lambda: call(training.manager))
    assert seed.stage is Stage.TRAINING
    assert not seed.paused
    assert_same_bits(snapshot(training.host, training.batch, [training.optimizer]), before, "the host")


def test_the_thread_that_steps_is_the_training_thread() -> None:
    """Made in one thread, trained in another, and taken over when that one has ended."""
    training = Training()

    def run() -> None:
        training.manager.germinate("1", "mlp", name="a")  # before the first step no thread is the one
        training.step()
        training.manager.blend("a", steps=1)

    in_thread(run)
    training.manager.cull("a")  # its thread has ended
    training.step()
    assert not training.manager.seeds


def test_two_threads_cannot_step_at_once() -> None:
    inside, leave = threading.Event(), threading.Event()

    def block(event: Any) -> None:
        if event.kind == "metrics":
            inside.set()
            assert leave.wait(DEADLINE)

    training = Training(block, metrics_every=1)
    with ThreadPoolExecutor(1) as pool:
        stepping = pool.submit(training.manager.step)
        assert inside.wait(DEADLINE)
        with pytest.raises(StageError, match="is inside manager"):
            training.manager.step()
        leave.set()
        stepping.result(DEADLINE)
    training.manager.step()


def test_what_an_interrupted_step_left_waiting_is_carried_out_later(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    futures = [training.manager.submit(SEED(slot="1", blueprint="mlp", name=name)) for name in "abc"]
    germinate = training.manager.germinate

    def interrupted(**options: Any) -> Any:
        if options["name"] == "b":
            raise KeyboardInterrupt
        return germinate(**options)

    monkeypatch.setattr(training.manager, "germinate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.manager.step()
    assert isinstance(futures[1].exception(0), KeyboardInterrupt)
    assert not futures[0].done()
    assert not futures[2].done()
    assert not training.manager.seeds, "commands of one step are applied as one"
    training.manager.step()
    assert futures[0].result(0).accepted
    assert futures[2].result(0).accepted
    assert list(training.manager.seeds) == ["a", "c"]


def test_many_threads_command_while_one_trains() -> None:
    """Each thread leads seeds of its own: all is done, in its order, and never inside of a step."""
    training, threads, rounds = Training(), 6, 5

    def command(number: int) -> list[Reply]:
        replies = []
        for turn in range(rounds):
            name = f"s{number}_{turn}"
            waiting = [
                training.manager.submit(SEED(slot=str(turn % 4), blueprint="mlp", name=name, id=name)),
                training.manager.submit(BLEND(seed=name, to=0.5, steps=2)),
                training.manager.submit(SEED(slot="nowhere", blueprint="mlp")),
                training.manager.submit(CULL(seed=name)),
                training.manager.submit(CULL(seed=name)),
            ]
            replies += [future.result(DEADLINE) for future in waiting]
        return replies

    with ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(command, number) for number in range(threads)]
        while not all(future.done() for future in working):
            training.step()
        replies = [future.result() for future in working]
    for of_thread in replies:
        assert [bool(reply) for reply in of_thread] == [True, True, False, True, False] * rounds
    assert not training.torn
    born = [
        e.seed
        for e in training.events
        if e.kind == "command" and e.data["accepted"] and e.data["command"]["type"] == "SEED"
    ]
    assert sorted(born) == sorted(f"s{n}_{t}" for n in range(threads) for t in range(rounds))
    for number in range(threads):  # in the order of each thread
        mine = [name for name in born if name.startswith(f"s{number}_")]
        assert mine == sorted(mine)
    assert not training.manager.seeds
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    plain.load_state_dict(training.host.state_dict())
    assert_same_bits(
        observed_call(training.host, training.batch), observed_call(plain, training.batch), "host and model"
    )
