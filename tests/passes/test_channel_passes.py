"""FindChannels and Widen on plain graph modules."""

from __future__ import annotations

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from fxgraft_passes import FindChannels, Widen, channels_of
from fxgraft_passes.errors import ChannelError
from tests.harness import assert_same_bits
from tests.resizing.models import Attention, Cnn, Gated, Mlp


class Literal(nn.Module):
    """Its graph has the number of heads, and the sizes around them, as plain numbers."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        heads = self.up(x).view(2, 7, 2, 4).transpose(1, 2)
        return self.down(F.gelu(heads).transpose(1, 2).reshape(2, 7, 8))


def traced(model):
    return fx.symbolic_trace(model.eval())


def test_nodes_are_annotated_and_nothing_changes():
    gm, x = traced(Mlp()), torch.randn(3, 4)
    code, before = gm.code, {n: p.clone() for n, p in gm.state_dict().items()}
    result = FindChannels((x,))(gm)
    assert (result.graph_module, result.modified, gm.code) == (gm, False, code)
    assert {node.name: node.meta["channels"][-1] for node in gm.graph.nodes if node.op == "call_module"} == {
        "up": ("up",),
        "act": ("up",),
        "down": ("down",),
    }
    assert channels_of(gm)["up"].fixed is None
    assert_same_bits(before, dict(gm.state_dict()))


def test_inputs_are_made_up_where_the_graph_has_their_form():
    gm, x = traced(Mlp()), torch.randn(3, 4)
    with pytest.raises(ChannelError, match="input 'x' of the graph: expected a value to run it with"):
        FindChannels()(gm)
    ShapeProp(gm).propagate(x)
    before = gm(x)
    assert channels_of(FindChannels()(gm).graph_module)["up"].fixed is None
    assert Widen("up", 3)(gm).modified
    torch.testing.assert_close(gm(x), before)


@pytest.mark.parametrize("init", ["zero", "split"])
@pytest.mark.parametrize(
    ("make", "x"),
    [
        (Mlp, torch.randn(3, 4)),
        (lambda: Gated(fused=True), torch.randn(3, 4)),
        (Cnn, torch.randn(3, 3, 8, 8)),
        (Literal, torch.randn(2, 7, 4)),
    ],
    ids=["mlp", "gated", "cnn", "numbers in the graph"],
)
def test_graphs_grow(make, x, init):
    gm = traced(make())
    before, ids = gm(x), [id(p) for p in gm.parameters()]
    FindChannels((x,))(gm)
    free = [(name, group) for name, group in channels_of(gm).items() if group.fixed is None]
    assert free
    for name, group in free:
        assert Widen(name, group.grain, (x,), init=init)(gm).modified
    torch.testing.assert_close(gm(x), before, rtol=1e-4, atol=1e-5)
    assert ids == [id(p) for p in gm.parameters()]
    gm.graph.lint()
    gm(x).sum().backward()
    assert all(p.grad.shape == p.shape for p in gm.parameters())


def test_numbers_in_the_graph_follow():
    gm, x = traced(Literal()), torch.randn(2, 7, 4)
    Widen("up", 4, (x,))(gm)
    assert "view(2, 7, 3, 4)" in gm.code
    assert "reshape(2, 7, 12)" in gm.code


def test_channels_of_exported_graphs_are_found_and_cannot_grow():
    x = torch.randn(2, 5, 12)
    gm = torch.export.export(Attention().eval(), (x,)).module()
    found = FindChannels((x,))(gm).graph_module.meta["channels"]
    assert all(group.fixed is not None for group in found.values())  # its operators have no rules here


def test_without_inputs_the_refusal_says_what_to_call():
    gm, x = traced(Mlp()), torch.randn(3, 4)
    for each in (FindChannels(), Widen("up", 2)):
        with pytest.raises(
            ChannelError, match=r"input 'x'.*FindChannels\(\(x,\)\).*ShapeProp\(graph_module\)"
        ):
            each(gm)
    ShapeProp(gm).propagate(x)
    Widen("up", 2)(gm)
    assert gm.up.out_features == 10


def test_refusals_change_nothing():
    gm, x = traced(Mlp()), torch.randn(3, 4)
    before = {n: p.clone() for n, p in gm.state_dict().items()}
    for widen, said in (
        (Widen("no", 1, (x,)), "no channels 'no'"),
        (Widen("down", 1, (x,)), "of the output"),
    ):
        with pytest.raises(ChannelError, match=said):
            widen(gm)
    with pytest.raises(ChannelError, match="FindChannels"):
        channels_of(gm)
    for each in (Widen("up", 1, (x,)), FindChannels((x,))):
        with pytest.raises(ChannelError, match="needs a GraphModule"):
            each.rewrite(gm.graph)
    assert_same_bits(before, dict(gm.state_dict()))
