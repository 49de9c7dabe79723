"""What "auto" finds: also in inserted blocks, and layers that read the argument of their block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.commands import SEED, WIDEN
from fxgraft.errors import CommandError

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class UpAndDown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Run:
    def __init__(self, model: nn.Module):
        torch.manual_seed(0)
        self.host = fxgraft.trace(model, (X,))
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = SeedManager(self.host, self.optimizer)

    def evaluate(self) -> Tensor:
        return self.host(X).square().mean()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.evaluate().backward()
            self.optimizer.step()
            self.manager.step()


def blocks() -> Run:
    return Run(nn.Sequential(nn.Sequential(UpAndDown()), nn.Linear(4, 2)))


def test_an_inserted_block_is_explored_like_the_one_it_was_copied_from() -> None:
    run = blocks()
    run.manager.deepen("0", 1)
    inner = "_seeds.UpAndDown_at_0_0.module"
    run.train(1)  # its output layer is not zero any more
    exploration = run.manager.explore(evaluate=run.evaluate, steps=2)
    learning = {row.slot for row in exploration.table if row.status == "learning"}
    assert {f"{inner}.up", f"{inner}.relu", f"{inner}.down"} <= learning
    same = [row.slot for row in exploration.table if "the very same value" in row.reason]
    assert not any(slot.startswith(f"{inner}.") for slot in same)
    run.train(2)
    assert exploration.done


@pytest.mark.parametrize(
    ("make", "group", "source"),
    [
        (blocks, "0.0.up", "0.0@x"),
        (lambda: Run(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))), "0", "@input"),
    ],
)
def test_a_layer_that_reads_an_argument_is_tried_wider(
    make: Callable[[], Run], group: str, source: str
) -> None:
    run = make()
    exploration = run.manager.explore(evaluate=run.evaluate, steps=2)
    (row,) = [row for row in exploration.table if row.widens and row.status == "learning"]
    assert row.command == WIDEN(group=group, by=8)
    assert run.manager.seeds[row.seed or ""].source == source
    run.train(2)
    assert exploration.done
    assert row.reason == ""
    assert run.manager.handle(row.command)
    assert run.host.channels[group].size == 16


def test_a_layer_wins_that_reads_the_argument_of_its_block() -> None:
    run = blocks()
    course: dict[str, Any] = {"steps": 2, "blend": 1, "hold": 1, "when": [0.1], "total_steps": 20}
    growth = run.manager.autogrow(
        run.evaluate, "auto", 9.0, score=lambda row: float(row.widens is not None), gain=-10.0, **course
    )
    run.train(12)
    assert "widened" in [entry["what"] for entry in growth.history], growth
    assert run.host.channels["0.0.up"].size == 16


def test_commands_may_be_json() -> None:
    run = blocks()
    text = '{"type": "SEED", "slot": "0.0.up", "blueprint": "norm"}'
    for given in (text, [text]):
        exploration = run.manager.explore(given, evaluate=run.evaluate, steps=2)
        assert [row.command for row in exploration.table] == [SEED(slot="0.0.up", blueprint="norm")]
        run.train(2)
    with pytest.raises(CommandError, match="JSON"):
        run.manager.explore('{"type": "SEED"', evaluate=run.evaluate, steps=2)


def test_an_evaluation_that_wants_arguments_is_refused_by_name() -> None:
    run = blocks()
    evaluate: Any = lambda host: host(X).mean()  # noqa: E731
    for call in (run.manager.explore, run.manager.autogrow):
        with pytest.raises(
            TypeError, match=r"evaluate: expected a function that is called without arguments.*'host'"
        ):
            call(evaluate=evaluate)  # type: ignore[operator]
    assert not run.manager.seeds
