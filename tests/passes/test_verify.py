"""Verify finds planted damage, and lets be what is right."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from fxgraft_passes import Fossilize, Germinate, GraftSpec, Phase, Verify
from fxgraft_passes.base import GraphPass
from fxgraft_passes.errors import FxGraftError, IsolationError, SlotError
from fxgraft_passes.graft import MODES
from tests.passes.graphs import LayerReluLayer, Twice, identity_of, state_of, traced


def grown(net=LayerReluLayer, slot="relu", mode="residual", phase=Phase.ISOLATED, isolated=True):
    host = traced(net())
    Germinate(slot, "a", nn.Linear(4, 4), GraftSpec(mode, isolated=isolated), phase)(host)
    return host


def node(host, name):
    return next(node for node in host.graph.nodes if node.name == name)


@pytest.mark.parametrize(("mode", "phase", "isolated"), list(product(MODES, Phase, (True, False))))
def test_no_op(mode, phase, isolated):
    host = grown(mode=mode, phase=phase, isolated=isolated)
    Germinate("relu", "b", nn.Linear(4, 4), GraftSpec(mode), phase)(host)
    Fossilize("b", 0.5)(host)
    before, identity = state_of(host), identity_of(host)
    result = Verify()(host)
    assert not result.modified
    assert result.graph_module is host
    assert state_of(host) == before
    assert identity_of(host) == identity


@pytest.mark.parametrize(("mode", "phase"), list(product(MODES, Phase)))
def test_a_missing_detach(mode, phase):
    host = grown(mode=mode, phase=phase)
    node(host, "seed").args = (node(host, "relu"),)
    with pytest.raises(IsolationError, match=r"seed 'a' at node 'relu': seed reads relu without a detach"):
        Verify()(host)


def test_a_seed_that_reads_the_host_elsewhere():
    host = grown()
    node(host, "seed").args = (node(host, "fc1"),)
    with pytest.raises(IsolationError, match=r"seed 'a'.*reads fc1 without a detach"):
        Verify()(host)


def test_a_second_input_past_the_detach():
    host = grown(Twice, "relu_1")
    node(host, "seed").args = (node(host, "seed_input"), node(host, "relu"))
    with pytest.raises(IsolationError, match=r"seed 'a'.*reads relu without a detach"):
        Verify()(host)


def test_a_consumer_past_the_graft():
    host = grown()
    node(host, "fc2").args = (node(host, "relu"),)
    with pytest.raises(SlotError, match=r"seed 'a' at node 'relu'.*fc2 read"):
        Verify()(host)


@pytest.mark.parametrize("stray", ["seed", "seed_input"])
def test_another_way_out(stray):
    host = grown()
    node(host, "fc2").args = (node(host, stray),)
    with pytest.raises(IsolationError, match=rf"seed 'a': {stray} is read outside of the graft, by fc2"):
        Verify()(host)


def test_a_malformed_graph():
    host = grown()
    node(host, "fc1").args = (node(host, "relu"),)
    with pytest.raises(FxGraftError, match=r"malformed"):
        Verify()(host)


def test_an_attached_seed_may_read_the_host():
    host = grown(isolated=False)
    assert [str(value) for value in node(host, "seed").args] == ["relu"]
    assert not Verify()(host).modified


def test_a_pass_that_writes_a_bad_graph_changes_nothing():
    host = grown()

    class Leak(GraphPass):
        def rewrite(self, graph):
            nodes = {node.name: node for node in graph.nodes}
            nodes["seed"].args = (nodes["relu"],)
            return True

        def attach(self, graph_module):
            graph_module.leaked = torch.nn.Identity()

    before, identity = state_of(host), identity_of(host)
    with pytest.raises(IsolationError):
        Leak()(host)
    assert state_of(host) == before
    assert identity_of(host) == identity
