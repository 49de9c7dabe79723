"""Cull after Germinate is the identity, in text, in code, in attributes and in what it computes."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxgraft.util.bits import same_bits
from fxgraft_passes import Cull, Fossilize, Germinate, GraftSpec, Phase
from fxgraft_passes.graft import MODES
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


@pytest.mark.parametrize(("mode", "phase", "isolated"), list(product(MODES, Phase, (True, False))))
def test_cull_after_germinate_is_the_identity(mode, phase, isolated):
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    before, value, gradients = state_of(host), host(x), gradients_after(host, x)
    Germinate("relu", "a", nn.Linear(4, 4), GraftSpec(mode, isolated=isolated), phase)(host)
    assert state_of(host) != before
    result = Cull("a")(host)
    assert result.modified
    assert result.graph_module is host
    assert state_of(host) == before
    assert same_bits(host(x), value)
    assert same_bits(gradients_after(host, x), gradients)


@given(data=st.data())
def test_any_seeds_in_any_order(data):
    net = data.draw(st.sampled_from([LayerReluLayer, Twice, Fan, InPlace]))
    host = traced(net())
    before = state_of(host)
    slots = [node.name for node in host.graph.nodes if node.op.startswith("call")]
    names = data.draw(st.permutations(["a", "b", "c", "d"]))
    for name in names:
        mode, phase = data.draw(st.sampled_from(MODES)), data.draw(st.sampled_from(list(Phase)))
        Germinate(data.draw(st.sampled_from(slots)), name, nn.Identity(), GraftSpec(mode), phase)(host)
    fossils = data.draw(st.sets(st.sampled_from(names)))
    for name in fossils:
        Fossilize(name, data.draw(st.sampled_from([0.5, 1.0])))(host)
    for name in data.draw(st.permutations(names)):
        assert Cull(name)(host).modified
        host.graph.lint()
    assert state_of(host) == before


@pytest.mark.parametrize("grown", [False, True])
def test_no_op(grown):
    host = traced(LayerReluLayer())
    if grown:
        Germinate("relu", "b", nn.Linear(4, 4))(host)
    before, identity = state_of(host), identity_of(host)
    result = Cull("a")(host)
    assert not result.modified
    assert result.graph_module is host
    assert state_of(host) == before
    assert identity_of(host) == identity


def test_the_seed_is_garbage():
    host = traced(LayerReluLayer())
    Germinate("relu", "a", nn.Linear(4, 4))(host)
    gradients_after(host, input_for(LayerReluLayer()))
    seed = weakref.ref(host._seeds.a.module)
    Cull("a")(host)
    gc.collect()
    assert seed() is None


def test_the_last_one_takes_the_container_with_it():
    host = traced(LayerReluLayer())
    for name in "ab":
        Germinate("relu", name, nn.Linear(4, 4))(host)
    Cull("a")(host)
    assert list(host._seeds._modules) == ["b"]
    Cull("b")(host)
    assert "_seeds" not in host._modules


def test_a_graft_kept_elsewhere_stays_there():
    host = traced(LayerReluLayer())
    Germinate("relu", "a", nn.Linear(4, 4))(host)
    host.elsewhere = host._seeds.a
    Cull("a")(host)
    Germinate("relu", "a", path="elsewhere")(host)
    Cull("a")(host)
    assert isinstance(host.elsewhere.module, nn.Linear)


def test_a_deep_copy_is_culled_apart():
    host = traced(LayerReluLayer())
    before = state_of(host)
    Germinate("relu", "a", nn.Linear(4, 4))(host)
    grown = state_of(host)
    twin = copy.deepcopy(host)
    assert Cull("a")(twin).modified
    assert state_of(twin)["code"] == before["code"]
    assert state_of(host) == grown
    assert Cull("a")(host).modified


@pytest.mark.parametrize("phase", [Phase.ISOLATED, Phase.BLENDED, Phase.SETTLED])
def test_pickling_keeps_values_and_gradients(phase):
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    Germinate("relu", "a", nn.Linear(4, 4), phase=phase)(host)
    copied = pickle.loads(pickle.dumps(host))
    for module in (host, copied):
        module._seeds.a.alpha.fill_(0.5)  # the copy's own, not a constant of when it was loaded
        module(x).square().sum().backward()
    grads = [[p.grad for p in module.parameters()] for module in (host, copied)]
    assert same_bits(*grads)
    assert host._seeds.a.module.weight.grad.any()


def test_pickling_drops_the_marks_and_they_are_found_again():
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    Germinate("relu", "a", nn.Linear(4, 4), phase=Phase.BLENDED)(host)
    host._seeds.a.alpha.fill_(0.5)
    copied = pickle.loads(pickle.dumps(host))
    assert same_bits(copied(x), host(x))
    assert Cull("a")(copied).modified
    assert same_bits(copied(x), copied.fc2(copied.relu(copied.fc1(x))))
