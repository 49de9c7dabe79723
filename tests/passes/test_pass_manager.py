"""The passes in ``torch.fx``'s own PassManager, and what the README says."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager, this_before_that_pass_constraint

import fxgraft_passes
from fxgraft.util.bits import same_bits
from fxgraft_passes import Cull, FindSlots, Fossilize, Germinate, Phase, Verify, slots_of
from fxgraft_passes.base import GraphPass
from tests.passes.graphs import LayerReluLayer, identity_of, input_for, state_of, traced

README = Path(fxgraft_passes.__file__).parent.parent / "README.md"
PASSES = (Cull, FindSlots, Fossilize, Germinate, Verify)


@pytest.mark.parametrize("cls", PASSES)
def test_a_pass_is_a_frozen_dataclass_that_opens_with_its_rewrite(cls):
    assert issubclass(cls, GraphPass)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert cls.__doc__
    module = __import__(cls.__module__, fromlist=["*"])
    assert re.search(r"before.*::|: +(detach|read)", module.__doc__), "before -> after, or the promises"


def test_a_pipeline():
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    before, value = state_of(host), host(x)
    passes = [
        FindSlots(example_args=(x,)),
        Germinate("relu", "a", nn.Linear(4, 4), phase=Phase.BLENDED),
        Germinate("relu", "b", nn.Linear(4, 4), phase=Phase.BLENDED),
        Verify(),
    ]
    result = PassManager(passes, run_checks_after_each_pass=True)(host)
    assert isinstance(result, PassResult)
    assert result.modified
    assert result.graph_module is host
    assert same_bits(host(x), value)
    assert [slot.name for slot in slots_of(host.graph)] == ["fc1", "relu", "fc2"]
    assert PassManager([Fossilize("a"), Cull("a"), Cull("b"), Verify()])(host).modified
    assert state_of(host) == before
    assert same_bits(host(x), value)


def test_it_stops_where_nothing_is_modified():
    host = traced(LayerReluLayer())
    before = state_of(host)
    assert not PassManager([FindSlots(), Cull("a"), Fossilize("a"), Verify()], steps=5)(host).modified
    assert state_of(host) == before


def test_constraints_order_the_passes():
    host = traced(LayerReluLayer())
    germinate, cull = Germinate("relu", "a", nn.Linear(4, 4)), Cull("a")
    manager = PassManager([cull, germinate], [this_before_that_pass_constraint(germinate, cull)])
    assert manager(host).modified
    assert "_seeds" not in host._modules


def test_a_failure_names_the_pass_and_keeps_what_went_before():
    host = traced(LayerReluLayer())
    passes = [Germinate("relu", "a", nn.Linear(4, 4)), Germinate("nowhere", "b", nn.Linear(4, 4))]
    with pytest.raises(
        Exception, match=r"'Germinate' pass after the following passes: .*'Germinate'"
    ) as caught:
        PassManager(passes)(host)
    assert isinstance(caught.value.__cause__, fxgraft_passes.errors.SlotError)
    assert list(host._seeds._modules) == ["a"]


def blocks():
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)


@pytest.fixture
def readme(monkeypatch):
    """A module for the code of the README."""
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    return module


def test_the_readme_runs(readme):
    assert len(blocks()) == 4
    for block in blocks():
        exec(compile(block, str(README), "exec"), readme.__dict__)


def test_the_example_of_the_readme_is_a_good_pass(readme):
    exec(next(block for block in blocks() if "class ReplaceCall" in block), readme.__dict__)
    host = traced(LayerReluLayer())
    before, identity = state_of(host), identity_of(host)
    assert not readme.ReplaceCall(torch.relu, torch.tanh)(host).modified
    assert state_of(host) == before
    assert identity_of(host) == identity
