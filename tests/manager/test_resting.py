"""A manager that has no seeds, or fossils only, rests: it only counts steps, and wakes when it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.commands import SEED
from fxgraft.errors import StageError
from fxgraft.manager import _stepping


@pytest.fixture(params=["no seeds", "a fossil"])
def manager(request: pytest.FixtureRequest) -> SeedManager:
    """Its last steps had nothing to do."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    host = fxgraft.trace(model, (torch.zeros(2, 4),))
    made = SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    if request.param == "a fossil":
        fossil = made.germinate("1", "mlp", name="fossil")
        made.blend(fossil, steps=0)
        made.fossilize(fossil, force=True)
    for _ in range(3):
        made.step()
    return made


@pytest.fixture
def full_steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with each step that is more than counted."""
    taken: list[Any] = []
    whole = _stepping._step

    def step(manager: Any, loss: Any = None) -> None:
        taken.append(loss)
        whole(manager, loss)

    monkeypatch.setattr(_stepping, "_step", step)
    return taken


def test_steps_at_rest_are_counted_and_nothing_else(manager: SeedManager, full_steps: list[Any]) -> None:
    before = manager._reporter.step
    for loss in (None, torch.ones(()), None):
        manager.step(loss)
    assert full_steps == []
    assert manager._reporter.step == before + 3


WAKES: dict[str, Callable[[SeedManager], object]] = {
    "a germination": lambda manager: manager.germinate("1", "mlp"),
    "one in the background": lambda manager: manager.germinate("1", "mlp", wait=False),
    "a command": lambda manager: manager.submit(SEED(slot="1", blueprint="mlp")),
    "a block": lambda manager: _in_block(manager),
    "a seed that is gone again": lambda manager: manager.cull(manager.germinate("1", "mlp")),
    "growth by itself": lambda manager: manager.autogrow(lambda: 0.0, when=lambda step: False),
    "an exploration": lambda manager: manager.explore("1", evaluate=lambda: 0.0, steps=2, blueprints=["mlp"]),
}


def _in_block(manager: SeedManager) -> None:
    with manager.together():
        manager.germinate("1", "mlp")


@pytest.mark.parametrize("what", WAKES)
def test_it_wakes_for(what: str, manager: SeedManager, full_steps: list[Any]) -> None:
    WAKES[what](manager)
    manager.step()
    assert len(full_steps) == 1


def test_what_was_asked_for_at_rest_happens(manager: SeedManager) -> None:
    reply = manager.submit(SEED(slot="1", blueprint="mlp", name="sent"))
    manager.step()
    assert reply.result(0).accepted
    late = manager.germinate("0", "mlp", wait=False)
    manager._background.wait(30)
    for _ in range(3):
        manager.step()
    assert [late.stage, manager.seeds["sent"].stage] == [Stage.TRAINING] * 2


def test_what_a_step_refuses_it_refuses_at_rest(manager: SeedManager) -> None:
    with pytest.raises(TypeError, match="expected a number"):
        manager.step("0.5")  # type: ignore[arg-type]
    with manager.together(), pytest.raises(StageError, match=r"inside manager\.together"):
        manager.step()
    with manager.shadow(), pytest.raises(StageError, match="cannot step inside"):
        manager.step()


def test_the_thread_of_the_last_step_is_the_training_thread(manager: SeedManager) -> None:
    stepped = threading.Thread(target=manager.step)
    stepped.start()
    stepped.join()
    assert manager._inbox._trainer is stepped, "the training thread is another one, also at rest"


def test_nothing_is_left_of_a_seed_between_two_steps(manager: SeedManager) -> None:
    manager.cull(manager.germinate("1", "mlp"))
    manager.step()
    assert manager.host._links.on_call is None, "no call is looked at any more"
