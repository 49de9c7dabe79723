"""``host.slots.select``: every way of choosing slots, in execution order, and what is said where none is."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.errors import SlotError
from tests.hosts.transformer_models import MODELS
from tests.strategies import Plan, plans


class LayerReadInManyWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.fc(x))
        y = F.linear(y, self.fc.weight).relu()
        return self.norm(self.fc(y)) + y.argmax(-1, keepdim=True)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.blocks = nn.ModuleList([LayerReadInManyWays(), LayerReadInManyWays()])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def slots():
    return fxgraft.trace(Model(), (torch.randn(2, 4),)).slots


INNER = ["fc", "relu", "linear", "relu_1", "fc_1", "norm", "add"]


def test_the_table_is_a_mapping_in_execution_order(slots):
    blocks = [f"blocks.{i}.{name}" for i in range(2) for name in INNER]
    blocks.insert(7, "blocks.0")
    assert list(slots) == ["stem.0", "stem.1", "stem", *blocks, "blocks.1", "head"]
    assert isinstance(slots, Mapping)
    assert slots["head"].shape == (2, 2)
    assert "nowhere" not in slots
    assert repr(slots).startswith("Slots(stem.0, stem.1")


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("head", ["head"]),
        ("stem*", ["stem.0", "stem.1", "stem"]),
        ("blocks.?.fc", ["blocks.0.fc", "blocks.1.fc"]),
        ("*.relu_1", ["blocks.0.relu_1", "blocks.1.relu_1"]),
        (re.compile(r"blocks\.\d"), ["blocks.0", "blocks.1"]),
        (re.compile(r".*\.1\.(norm|add)"), ["blocks.1.norm", "blocks.1.add"]),
        (["norm", "head"], ["blocks.0.norm", "blocks.1.norm", "head"]),
        (["0.fc"], ["blocks.0.fc", "blocks.0.fc_1"]),
        (["add"], ["blocks.0.add", "blocks.1.add"]),
        ({"blocks.0"}, ["blocks.0"]),
        (nn.LayerNorm, ["blocks.0.norm", "blocks.1.norm"]),
        (LayerReadInManyWays, ["blocks.0", "blocks.1"]),
        (nn.Sequential, ["stem"]),
        ([nn.Linear, nn.ReLU], ["stem.1"]),
        ([F.linear, F.relu], ["stem.1", *(f"blocks.{i}.{n}" for i in "01" for n in ("relu", "relu_1"))]),
        ((nn.LayerNorm, nn.ReLU), ["stem.1", "blocks.0.norm", "blocks.1.norm"]),
        ([F.relu, F.linear], [f"blocks.{i}.{n}" for i in "01" for n in ("linear", "fc_1")]),
        ([F.relu, nn.Linear, nn.LayerNorm], ["blocks.0.norm", "blocks.1.norm"]),
        ([torch.nn.functional.layer_norm, "add"], ["blocks.0.add", "blocks.1.add"]),
        (lambda slot: slot.name.endswith("norm"), ["blocks.0.norm", "blocks.1.norm"]),
        (lambda slot: slot.shape[-1] == 2, ["head"]),
    ],
)  # fmt: skip
def test_select(slots, choice, names):
    chosen = slots.select(choice)
    assert list(chosen) == names
    assert all(chosen[name] is slots[name] for name in names)


def test_a_selection_can_be_narrowed(slots):
    assert list(slots.select("blocks.0.*").select(nn.Linear)) == ["blocks.0.fc", "blocks.0.fc_1"]
    with pytest.raises(
        SlotError, match="no slot of 7 is selected by Conv2d; there are slots behind Linear, "
    ):
        slots.select("blocks.0.*").select(nn.Conv2d)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("haed", "no slot of 20 is selected by 'haed'; did you mean 'head'"),
        ("block.0.fc", r"did you mean 'blocks\.0\.fc"),
        ("*.nrom", r"did you mean 'blocks\.\d\.norm'"),
        (re.compile("heads"), "by the pattern 'heads'; did you mean 'head'"),
        (["nrom", "haed"], r"by \['nrom', 'haed'\]; did you mean 'blocks\.0\.norm', 'head'"),
        ("*.argmax", r"what it names is no slot: 'blocks\.0\.argmax' is torch.int64"),
        (["argmax"], r"what it names is no slot: 'blocks\.0\.argmax' is torch.int64"),
        (nn.Conv2d, "by Conv2d; there are slots behind Linear, ReLU, Sequential, "),
        ([F.gelu], r"by \[gelu\]; there are slots behind .*relu, linear"),
        ([F.relu, nn.LayerNorm], r"by \[relu, LayerNorm\]"),
        (lambda slot: False, "no slot of 20 is selected by <lambda>"),
    ],
)
def test_nothing_selected_is_an_error_that_helps(slots, choice, message):
    with pytest.raises(SlotError, match=message):
        slots.select(choice)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (F.relu, r"for slots behind an operation pass a list, \[relu\]"),
        (lambda slot: None, "expected a predicate, which gives True or False"),
        (3, "choice: expected a name"),
        (None, "choice: expected a name"),
        ([], "choice: expected a name"),
        ([3], r"or a list of operations; got \[3\]"),
        ((F.relu, F.linear), "or a list of operations; got"),
    ],
)
def test_what_is_no_choice_is_refused(slots, choice, message):
    with pytest.raises(TypeError, match=message):
        slots.select(choice)


@given(plans(), st.data())
def test_globs_and_patterns_and_names_agree(plan: Plan, data: st.DataObject) -> None:
    slots = fxgraft.trace(plan.build(), (plan.batch(0),)).slots
    name = data.draw(st.sampled_from(list(slots)))
    assert list(slots.select(name)) == [name]
    glob = name[: data.draw(st.integers(0, len(name)))] + "*"
    expected = [n for n in slots if fnmatch.fnmatchcase(n, glob)]
    assert list(slots.select(glob)) == expected
    assert list(slots.select(re.compile(fnmatch.translate(glob)))) == expected
    assert list(slots.select(lambda slot: slot.name in expected)) == expected
    end = name.rpartition(".")[2]
    assert name in slots.select([end])


def test_the_targets_that_people_give_peft():
    given = MODELS["llama"]()
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    targets = ["q_proj", "v_proj"]
    chosen = host.slots.select(targets)
    expected = [n for n, _ in given.model.named_modules() if n.rpartition(".")[2] in targets]
    assert sorted(chosen) == sorted(expected)
    manager = fxgraft.SeedManager(host)
    for name in chosen:
        manager.germinate(name, "low_rank", rank=2)
    assert [seed.slot for seed in manager.seeds.values()] == list(chosen)


def test_modules_that_code_without_a_graph_calls_are_found_by_type():
    class Branching(Model):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() < 99 else x

    slots = fxgraft.trace(Branching(), (torch.randn(2, 4),)).slots
    assert "head" in slots.select(nn.Linear)
    assert list(slots.select(nn.LayerNorm)) == ["blocks.0.norm", "blocks.1.norm"]
