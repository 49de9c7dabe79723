"""Germinate: where it splices, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from fxgraft.util.bits import same_bits
from fxgraft_passes import Cull, Germinate, Graft, GraftSpec, Phase
from fxgraft_passes.errors import FxGraftError, SlotError
from fxgraft_passes.graft import MODES
from fxgraft_passes.objectives import OBJECTIVES
from fxgraft_passes.sites import chain_at, exit_of, exits, host_value, nodes_of
from tests.passes.graphs import (
    Fan,
    InPlace,
    LayerReluLayer,
    Twice,
    gradients_after,
    identity_of,
    input_for,
    state_of,
    traced,
)

PHASES = list(Phase)


def chain(graph_module, slot="relu"):
    node = next(node for node in graph_module.graph.nodes if node.name == slot)
    return [site.name for site, _ in chain_at(node)]


@pytest.mark.parametrize(("mode", "objective"), list(product(MODES, OBJECTIVES)))
@pytest.mark.parametrize("phase", [Phase.ISOLATED, Phase.BLENDED, Phase.SETTLED])
def test_at_birth_value_and_host_gradients_are_those_without_the_seed(mode, objective, phase):
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    value, gradients = host(x), gradients_after(host, x)
    Germinate("relu", "a", nn.Linear(4, 4), GraftSpec(mode, objective), phase)(host)
    assert same_bits(host(x), value)
    after = gradients_after(host, x)
    assert same_bits({k: after[k] for k in gradients}, gradients)
    assert all(name in gradients or name.startswith("_seeds.a.module.") for name in after)


@pytest.mark.parametrize("mode", MODES)
def test_blended_at_one_is_the_end_value(mode):
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    seed = nn.Linear(4, 4)
    Germinate("relu", "a", seed, GraftSpec(mode), Phase.BLENDED)(host)
    host._seeds.a.alpha.fill_(1)
    h = host.relu(host.fc1(x))
    end = h + seed(h) if mode != "convex" else seed(h)
    assert same_bits(host(x), host.fc2(end))


def test_shadow_runs_a_learning_seed_at_alpha_one():
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    seed = nn.Linear(4, 4)
    Germinate("relu", "a", seed, phase=Phase.SHADOW)(host)
    h = host.relu(host.fc1(x))
    assert same_bits(host(x), host.fc2(h + seed(h)))
    host._seeds.a.learning.fill_(False)
    assert same_bits(host(x), host.fc2(h))


def test_result_is_the_same_module_with_another_graph():
    host = traced(LayerReluLayer())
    graph, text = host.graph, str(host.graph)
    result = Germinate("relu", "a", nn.Linear(4, 4))(host)
    assert result.modified
    assert result.graph_module is host
    assert host.graph is not graph
    assert str(graph) == text, "a pass rewrites a copy"
    host.graph.lint()


def test_marks():
    host = traced(LayerReluLayer())
    Germinate("relu", "a", nn.Linear(4, 4))(host)
    (site, exit_node), *others = exits(host.graph)
    assert not others
    assert (site.name, site.node, site.path) == ("a", "relu", "_seeds.a")
    assert host_value(exit_node).name == "relu"
    assert [node.name for node in nodes_of(host.graph, "a")] == ["seed_input", "seed", "graft"]
    assert exit_of(host.graph, "b") is None


def test_every_kind_of_consumer_is_rewired():
    host, x = traced(Fan()), input_for(Fan())
    Germinate("fc", "a", nn.Linear(4, 4), phase=Phase.BLENDED)(host)
    host._seeds.a.alpha.fill_(1)
    h = host.fc(x)
    y = h + host._seeds.a.module(h)
    expected = {"sum": y + y, "cat": torch.cat([x, y], dim=1), "clamp": torch.clamp(y, min=0.1), "y": y}
    assert same_bits(host(x), expected)


@pytest.mark.parametrize(("node", "expected"), [("relu", "first"), ("relu_1", "second")])
def test_one_call_of_a_shared_module(node, expected):
    host, x = traced(Twice()), input_for(Twice())
    seed = nn.Linear(4, 4)
    Germinate(node, "a", seed, phase=Phase.BLENDED)(host)
    host._seeds.a.alpha.fill_(1)

    def call(h, grown):
        h = host.relu(host.fc(h))
        return h + seed(h) if grown else h

    assert same_bits(host(x), call(call(x, expected == "first"), expected == "second"))


@pytest.mark.parametrize("names", ["abc", "cba", "bca"])
def test_seeds_of_a_slot_run_in_the_order_in_which_they_came(names):
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    for name in names:
        Germinate("relu", name, nn.Linear(4, 4), GraftSpec("convex"), Phase.BLENDED)(host)
        getattr(host._seeds, name).alpha.fill_(1)
    assert chain(host) == list(names)
    value = host.relu(host.fc1(x))
    for name in names:
        value = getattr(host._seeds, name).module(value)
    assert same_bits(host(x), host.fc2(value))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "abcn"),
        ({"before": "a"}, "nabc"),
        ({"before": "c"}, "abnc"),
        ({"after": "a"}, "anbc"),
        ({"after": "c"}, "abcn"),
        ({"after": "a", "before": "c"}, "abnc"),
        ({"after": "a", "before": "b"}, "anbc"),
    ],
)
def test_before_and_after(options, expected):
    host = traced(LayerReluLayer())
    for name in "abc":
        Germinate("relu", name, nn.Linear(4, 4))(host)
    Germinate("relu", "n", nn.Linear(4, 4), **options)(host)
    assert "".join(chain(host)) == expected
    Cull("n")(host)
    assert chain(host) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"before": "z"}, "got 'z', and there are: a, b"),
        ({"after": "elsewhere"}, "got 'elsewhere', and there are: a, b"),
        ({"after": "b", "before": "a"}, "they stand the other way: a, b"),
        ({"after": "a", "before": "a"}, "they stand the other way: a, b"),
    ],
)
def test_a_place_that_there_is_not_is_refused_and_changes_nothing(options, message):
    host = traced(LayerReluLayer())
    for name in "ab":
        Germinate("relu", name, nn.Linear(4, 4))(host)
    Germinate("fc1", "elsewhere", nn.Linear(4, 4))(host)
    before, identity = state_of(host), identity_of(host)
    with pytest.raises(SlotError, match=message):
        Germinate("relu", "n", nn.Linear(4, 4), **options)(host)
    assert (state_of(host), identity_of(host)) == (before, identity)


def test_culling_the_first_leaves_the_others_running():
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    seeds = {name: nn.Linear(4, 4) for name in "abc"}
    for name, seed in seeds.items():
        Germinate("relu", name, seed, phase=Phase.BLENDED)(host)
        getattr(host._seeds, name).alpha.fill_(1)
    Cull("a")(host)
    assert chain(host) == ["b", "c"]
    h = host.relu(host.fc1(x))
    h = h + seeds["b"](h)
    assert same_bits(host(x), host.fc2(h + seeds["c"](h)))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_in_place_consumer_with_copy(phase, layout):
    host, x = traced(InPlace()), input_for(InPlace()).contiguous(memory_format=layout)
    value, gradients = host(x), gradients_after(host, x)
    Germinate("conv", "a", nn.Conv2d(3, 3, 1), GraftSpec(copy=True), phase)(host)
    host._seeds.a.learning.fill_(phase is not Phase.SHADOW)
    assert same_bits(host(x), value)
    after = gradients_after(host, x)
    assert same_bits({k: after[k] for k in gradients}, gradients)


def test_an_in_place_consumer_without_copy_raises_rather_than_being_wrong():
    host = traced(InPlace())
    Germinate("conv", "a", nn.Conv2d(3, 3, 1))(host)
    with pytest.raises(RuntimeError, match=r"modified inplace"):
        host(input_for(InPlace()))


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ("rel", "no such node"),
        ("", "no such node"),
        ("x", "placeholder"),
        ("output", "output"),
        ("weight", "get_attr"),
    ],
)
def test_nodes_that_are_no_slots(node, why):
    host = traced(Constant())
    before, identity = state_of(host), identity_of(host)
    with pytest.raises(SlotError, match=rf"node '{node}': expected .*; got {why}"):
        Germinate(node, "a", nn.Linear(4, 4))(host)
    assert state_of(host) == before
    assert identity_of(host) == identity


@pytest.mark.parametrize("node", ["relu", "fc1", "fc2"])
def test_a_name_is_used_once_in_a_graph(node):
    host = traced(LayerReluLayer())
    first = nn.Linear(4, 4)
    Germinate("relu", "a", first)(host)
    before, identity = state_of(host), identity_of(host)
    with pytest.raises(SlotError, match=r"a seed 'a' .*already"):
        Germinate(node, "a", nn.Linear(2, 2))(host)
    assert state_of(host) == before
    assert identity_of(host) == identity
    assert host._seeds.a.module is first


@pytest.mark.parametrize("name", ["training", "forward", "a.b", ""])
def test_a_name_that_cannot_be_an_attribute_changes_nothing(name):
    host = traced(LayerReluLayer())
    before, identity = state_of(host), identity_of(host)
    with pytest.raises((FxGraftError, ValueError), match=r"name"):
        Germinate("relu", name, nn.Linear(4, 4))(host)
    assert state_of(host) == before
    assert identity_of(host) == identity


@pytest.mark.parametrize(
    ("field", "value"),
    [("mode", "gate"), ("objective", "trusting"), ("radius", 0.0), ("radius", float("nan"))],
)
def test_specs_that_cannot_be(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: expected .*; got {value!r}"):
        GraftSpec(**{field: value})


def test_path_of_a_graft_that_is_there_already():
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    host.elsewhere = Graft(nn.Linear(4, 4), dtype=torch.float32, device=torch.device("cpu"))
    value = host(x)
    Germinate("relu", "a", path="elsewhere")(host)
    assert "_seeds" not in host._modules
    assert "self.elsewhere(" in host.code
    assert same_bits(host(x), value)


def test_steering_tensors_follow_the_host_but_keep_their_precision():
    host = traced(LayerReluLayer()).double()
    Germinate("relu", "a", nn.Linear(4, 4).double())(host)
    graft = host._seeds.a
    assert (graft.alpha.dtype, graft.learning.dtype, graft.released.dtype) == (
        torch.float64,
        torch.bool,
        torch.bool,
    )
    graft.alpha.fill_(0.3)
    host.float()
    graft.alpha.fill_(0.3)
    kept = graft.alpha.clone()
    host.bfloat16()
    assert graft.module.weight.dtype is torch.bfloat16
    assert same_bits(graft.alpha, kept)
    assert (graft.runs_with_grad.dtype, graft.runs_without_grad.dtype) == (torch.int64, torch.int64)
    assert [name for name in host.state_dict() if "_seeds" in name] == [
        f"_seeds.a.{name}" for name in ("alpha", "learning", "released", "module.weight", "module.bias")
    ]


def test_the_seed_of_a_host_without_parameters():
    class Bare(nn.Module):
        def forward(self, x):
            return x.relu().exp()

    host, x = traced(Bare()), torch.randn(3, 4)
    value = host(x)
    Germinate("relu", "a", nn.Identity())(host)
    assert same_bits(host(x), value)
