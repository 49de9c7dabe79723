"""SplitEdge: one reader of a value gets a node of its own, and nothing else changes."""

from __future__ import annotations

import pytest
from torch import nn

from fxgraft.util.bits import same_bits
from fxgraft_passes import Cull, Germinate, Phase, SplitEdge
from fxgraft_passes.errors import SlotError
from tests.passes.graphs import Fan, Twice, identity_of, input_for, state_of, traced


def test_one_reader_of_many():
    host, x = traced(Fan()), input_for(Fan())
    before = host(x)
    assert SplitEdge("fc", "clamp")(host).modified
    assert same_bits(host(x), before)
    Germinate("fc_to_clamp", "a", nn.Linear(4, 4), phase=Phase.BLENDED)(host)
    host._seeds.a.alpha.fill_(1)
    y = host.fc(x)
    grown = y + host._seeds.a.module(y)
    assert same_bits(host(x), {**before, "clamp": grown.clamp(min=0.1)})
    Cull("a")(host)
    assert same_bits(host(x), before)


def test_all_arguments_of_the_reader_are_meant():
    host = traced(Fan())
    SplitEdge("fc", "add")(host)
    (add,) = (node for node in host.graph.nodes if node.name == "add")
    assert [node.name for node in add.args] == ["fc_to_add", "fc_to_add"]


def test_no_op_where_the_edge_is_split():
    host = traced(Fan())
    SplitEdge("fc", "clamp")(host)
    before, identity = state_of(host), identity_of(host)
    assert not SplitEdge("fc", "clamp")(host).modified
    assert (state_of(host), identity_of(host)) == (before, identity)


def test_it_is_behind_the_seeds_of_the_value_whoever_came_first():
    codes = []
    for order in ((0, 1), (1, 0)):
        host = traced(Fan())
        steps = [SplitEdge("fc", "clamp"), Germinate("fc", "a", nn.Linear(4, 4))]
        for i in order:
            steps[i](host)
        codes.append(host.code)
        (node,) = (node for node in host.graph.nodes if node.name == "fc_to_clamp")
        assert [n.name for n in node.all_input_nodes] == ["graft"]
    assert codes[0] == codes[1]


@pytest.mark.parametrize(
    ("node", "reader", "given"),
    [
        ("fc", "fc_1", "it is read by relu"),
        ("fc", "nowhere", "it is read by relu"),
        ("no", "fc", "no such node"),
    ],
)
def test_a_failure_changes_nothing(node, reader, given):
    host = traced(Twice())
    before, identity = state_of(host), identity_of(host)
    with pytest.raises(SlotError, match=f"edge {node} -> {reader}: expected a node that reads.*{given}"):
        SplitEdge(node, reader)(host)
    assert (state_of(host), identity_of(host)) == (before, identity)
