"""What a user may give by mistake is refused by name, or a row says why nothing came of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.commands import SEED, WIDEN
from fxgraft.errors import CommandError
from fxgraft.explore import Row
from tests.explore import runs
from tests.explore.runs import Hidden, Run, X, Y
from tests.explore.test_price import Stack
from tests.harness import assert_same_bits

MLP = SEED(slot="relu", blueprint="mlp")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"cap": 5}, TypeError, "cap: expected a mapping with some of candidates, parameters, flops, memory"),
        (
            {"most": 100},
            TypeError,
            "most: expected a mapping with some of .*; got 100",
        ),
        ({"most": {"parameters": "many"}}, ValueError, r"most\['parameters'\]: expected a whole number"),
        ({"most": {"x": 1}}, ValueError, "most: expected parameters, flops, memory; got 'x'"),
        (
            {"blueprints": []},
            ValueError,
            r"blueprints: expected one name at least, .*; got \[\]",
        ),
        ({"exclude": "relu"}, TypeError, "exclude: expected a list of commands, .*; got 'relu'"),
        ({"exclude": MLP}, TypeError, "exclude: expected a list of commands, .*; got SEED"),
        ({"exclude": ["relu"]}, CommandError, "exclude: expected a JSON object"),
        ({"wider": "no"}, ValueError, "wider: expected True or False; got 'no'"),
        ({"candidates": WIDEN(group="first", by=2)}, TypeError, r"got WIDEN\. .* manager\.handle\(command\)"),
        ({"candidates": {"slot": "relu"}}, TypeError, 'got dict without "type", which a command has'),
    ],
)
def test_arguments_are_refused_by_name(options: Any, error: type[Exception], said: str) -> None:
    run = Run()
    before = run.state()
    with pytest.raises(error, match=said):
        run.manager.explore(**{"candidates": "relu", "evaluate": run.evaluate, **options})
    assert not run.manager.seeds
    assert_same_bits(before, run.state(), "the run")


def test_a_row_is_no_candidate_and_the_error_says_what_is() -> None:
    run = Run()
    rows: list[Row] = run.explored([MLP]).table
    with pytest.raises(TypeError, match=r"got Row\. A row has its command in row\.command"):
        run.manager.explore(rows, evaluate=run.evaluate)


def test_the_steps_of_a_growth_are_refused_under_their_name() -> None:
    with pytest.raises(ValueError, match=r"^steps: expected a positive whole number; got 0"):
        Run().manager.autogrow(lambda: 1.0, steps=0)


def test_slots_in_a_set_have_the_same_order_in_each_process() -> None:
    names = ["relu", "first", "drop", "norm"]
    found = []
    for given in (set(names), frozenset(names)):
        exploration = Run().manager.explore(given, evaluate=lambda: 1.0, blueprints=["norm"])
        found.append([row.slot for row in exploration.table])
    assert found == [["drop", "first", "norm", "relu"]] * 2


NO_LOSSES = [True, torch.tensor(True), np.ones(3), {"loss": 1.0}, None, torch.ones(2, 2), torch.ones(0), "1"]


@pytest.mark.parametrize("given", NO_LOSSES, ids=map(repr, NO_LOSSES))
def test_what_is_no_loss_is_refused(given: Any) -> None:
    for begin in (lambda manager: manager.explore("relu", evaluate=lambda: given),
                  lambda manager: manager.autogrow(lambda: given, "relu")):  # fmt: skip
        with pytest.raises(TypeError, match=r"evaluate: expected .* a tensor with at most one dimension"):
            begin(Run().manager)


@pytest.mark.parametrize(
    "given", [1, np.float32(1.0), torch.tensor(1), torch.ones(1), (1.0, 2.0), [[1.0], [2.0]]]
)
def test_what_is_a_loss_is_taken(given: Any) -> None:
    Run().manager.explore("relu", evaluate=lambda: given)


def test_a_host_whose_loss_is_nan_is_said_to_be_so_after_one_evaluation() -> None:
    run, calls = Run(), [0]

    def evaluate() -> Tensor:
        calls[0] += 1
        loss = torch.stack(run.evaluate()).mean()
        return loss if calls[0] == 1 else loss * math.nan

    exploration = run.manager.explore("relu", evaluate=evaluate, steps=2)
    run.train(2)
    reasons = {row.reason for row in exploration.table}
    assert len(exploration.table) > 1
    assert reasons == {
        "the loss of the host is nan without any candidate. Expected a finite one: look at the training, or "
        "at evaluate"
    }
    assert calls == [2]


class Masked(nn.Module):
    """It computes a mask that no gradient goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(x))
        return self.last(h) * (h.mean(-1, keepdim=True) * 2.0 > 0)


def test_a_place_that_no_gradient_reaches_is_said_to_be_one() -> None:
    torch.manual_seed(0)
    host = fxgraft.trace(Masked(), (X[:4],))
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = SeedManager(host, optimizer, check_every=0)
    exploration = manager.explore(evaluate=lambda: F.cross_entropy(host(X), Y), steps=4)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(host(X), Y).backward()
        optimizer.step()
        manager.step()
    by = {(row.slot, row.blueprint): row for row in exploration.table}
    assert by["relu", "norm"].status == "measured"
    mean = [row for row in exploration.table if row.slot in ("mean", "mul") and row.status == "failed"]
    assert mean, exploration
    assert {row.reason for row in mean} == {"it was not trained: no gradient reached it"}


def frozen_stack() -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "NormNet", Stack)
        run = Run(check_every=0)
    for module in run.host.modules():
        if isinstance(module, Hidden):
            module.requires_grad_(False)
    return run


def test_frozen_layers_are_left_out_with_the_reason() -> None:
    run = frozen_stack()
    exploration = run.explored("auto", steps=2)
    by = {row.blueprint: row for row in exploration.table if row.widens or row.deepens}
    assert by["deepen"].reason == (
        "all parameters of 'blocks.0' are frozen: a copy of it would learn nothing"
    )
    widened = [row for row in exploration.table if row.widens and "blocks" in row.slot]
    assert widened
    for row in widened:
        assert row.status == "left out"
        assert "is frozen, and what the branch learns could not become a part of it" in row.reason


def test_a_frozen_block_that_is_named_is_refused() -> None:
    run = frozen_stack()
    block = SEED(slot="blocks.0", blueprint="deepen", config={"stack": "blocks", "at": 0})
    with pytest.raises(ValueError, match=r"nothing could grow: all parameters of 'blocks.0' are frozen"):
        run.manager.explore([block], evaluate=run.evaluate)
