"""FindSlots: the slots, and for every other value the reason; nothing is changed by looking."""

from __future__ import annotations

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from torch import nn

import fxgraft
from fxgraft.util.bits import same_bits
from fxgraft_passes import FindSlots, Germinate, GraftSpec, Phase, rejections_of, slots_of
from tests.passes.graphs import (
    InPlace,
    LayerReluLayer,
    gradients_after,
    identity_of,
    input_for,
    state_of,
    traced,
)


def model_of(function):
    """A model that computes ``function(self, x)`` with a linear layer at hand."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return function(self, x)

    return Model()


def looked_at(function, *args):
    host = traced(model_of(function))
    FindSlots(example_args=args or (torch.randn(3, 4),))(host)
    return host


def slot_names(host):
    return [slot.name for slot in slots_of(host.graph)]


def test_slots_say_what_is_there():
    host, x = traced(InPlace()), input_for(InPlace()).contiguous(memory_format=torch.channels_last)
    assert not FindSlots(example_args=(x,), region="block.0")(host).modified
    slots = {slot.name: slot for slot in slots_of(host.graph)}
    assert list(slots) == ["block.0.conv", "block.0.relu", "block.0.mean", "block.0.fc"]
    conv = slots["block.0.conv"]
    assert conv.node in host.graph.nodes
    assert (conv.node.name, conv.shape, conv.dtype) == ("conv", (3, 3, 4, 4), torch.float32)
    assert (conv.channels_last, conv.copy, conv.region) == (True, True, "block.0")
    assert not slots["block.0.fc"].channels_last


def test_no_op():
    host = traced(LayerReluLayer())
    before, identity = state_of(host), identity_of(host)
    result = FindSlots(example_args=(input_for(LayerReluLayer()),))(host)
    assert not result.modified
    assert result.graph_module is host
    assert state_of(host) == before
    assert identity_of(host) == identity


def test_looking_changes_neither_buffers_nor_random_streams_nor_inputs():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(4)
            self.dropout = nn.Dropout(0.5)

        def forward(self, x):
            return x.add_(1) + self.dropout(self.bn(x))

    host, x = traced(Model()), torch.randn(3, 4)
    state, random, given = host.state_dict(), torch.get_rng_state(), x.clone()
    state = {key: value.clone() for key, value in state.items()}
    FindSlots(example_args=(x,))(host)
    assert same_bits(dict(host.state_dict()), state)
    assert torch.equal(torch.get_rng_state(), random)
    assert same_bits(x, given)


def test_grafts_are_no_slots_and_slots_survive_them():
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    FindSlots(example_args=(x,))(host)
    names = slot_names(host)
    Germinate("relu", "a", nn.Linear(4, 4))(host)
    FindSlots(example_args=(x,))(host)
    assert slot_names(host) == names == ["fc1", "relu", "fc2"]
    assert rejections_of(host.graph) == {}


def test_the_node_of_a_slot_is_in_the_graph_that_it_was_found_in():
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    FindSlots(example_args=(x,))(host)
    Germinate("relu", "a", nn.Linear(4, 4))(host)
    nodes = set(host.graph.nodes)
    assert [slot.node in nodes for slot in slots_of(host.graph)] == [True] * 3


def unused(model, x):
    y = model.fc(x)
    y.exp()
    return y


def integers(model, x):
    return model.fc(x).argmax(1)


def size(model, x):
    return model.fc(x).view(x.size(0), 2, 2)


def pair(model, x):
    low, high = model.fc(x).chunk(2, dim=1)
    return torch.cat([high, low], 1)


def sparse(model, x):
    return model.fc(x).to_sparse().to_dense()


def weight(model, x):
    return F.linear(x, model.fc.weight)


@pytest.mark.parametrize(
    ("function", "name", "reason"),
    [
        (unused, "exp", "is a dead branch: its value reaches neither the output nor what outlives the call"),
        (integers, "argmax", "is torch.int64, and a seed needs a floating point value"),
        (size, "size", "is a int, not a dense tensor"),
        (pair, "chunk", "is a tuple, not a dense tensor"),
        (sparse, "to_sparse", "is a torch.sparse_coo tensor, not a dense tensor"),
        (weight, "fc.weight", "is a parameter or buffer, not a computed value"),
    ],
)
def test_reasons(function, name, reason):
    host = looked_at(function)
    assert rejections_of(host.graph) == {name: reason}


def test_a_graph_that_was_never_run():
    host = fx.symbolic_trace(LayerReluLayer())
    FindSlots()(host)
    assert slot_names(host) == []
    assert set(rejections_of(host.graph).values()) == {"was not reached in the example run"}


def test_calls_of_different_shapes():
    class Half(nn.Module):
        def forward(self, x):
            return x.relu()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Half()

        def forward(self, x):
            return self.part(x).sum() + self.part(x[:, :2]).sum()

    host = fxgraft.trace(Model(), (torch.randn(3, 4),))
    assert "part.relu" not in host.slots
    assert host.rejected["part.relu"] == "had different shapes or dtypes in its 2 calls"


def test_values_without_gradients():
    class Frozen(nn.Module):
        def forward(self, x):
            return x.relu() * 2

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.fc = Frozen(), nn.Linear(4, 4)

        def forward(self, x):
            with torch.no_grad():
                x = self.frozen(x)
            return self.fc(x)

    host = fxgraft.trace(Model(), (torch.randn(3, 4),))
    assert host.rejected["frozen.relu"] == "is computed under no_grad, so a seed would never learn"
    assert "fc" in host.slots


# In-place hazards: the value at a slot is copied where a consumer writes into it, which is right only
# if nobody else looks at its memory.


def writes_itself(model, x):
    y = model.fc(x)
    y.relu_()
    return y


def writes_through_a_view(model, x):
    y = model.fc(x)
    y.view(-1).mul_(2)
    return y


def base_read_after_a_view_is_written(model, x):
    y = model.fc(x)
    z = y.view(-1, 2, 2)
    z.mul_(2)
    return y + z.view(-1, 4)


def base_written_after_a_view_is_taken(model, x):
    y = model.fc(x)
    z = y.view(-1, 2, 2)
    y.mul_(2)
    return z + 1


def sibling_views(model, x):
    y = model.fc(x)
    left, right = y[:, :2], y[:, :2]
    left.mul_(2)
    return left + right


def view_read_and_then_written(model, x):
    """Whose gradient is a sum in an order of its own: a copy that is no view would have another."""
    y = (model.fc(x) * 1).view(-1, 4)
    z = y * 2 + y.clone() - y.mul(0.3)
    y.add_(1.5)
    return z * x.sin() + y * x.cos()


def alias_of_an_input(model, x):
    y = x.view(-1, 2, 2)
    y.mul_(2)
    return model.fc(y.view(-1, 4))


def alias_of_a_parameter(model, x):
    y = model.fc.bias.detach()
    z = y.view(2, 2)
    z.mul_(1)
    return x.view(-1, 2, 2) * z


def expanded(model, x):
    y = model.fc(x).sum(1, keepdim=True).expand(-1, 4).detach()
    y[:, :1].mul_(2)
    return y * 1


@pytest.mark.parametrize(
    ("function", "node"),
    [
        (writes_itself, "fc"),
        (writes_through_a_view, "fc"),
        (base_read_after_a_view_is_written, "fc"),
        (base_written_after_a_view_is_taken, "fc"),
        (sibling_views, "fc"),
        (view_read_and_then_written, "view"),
    ],
)
def test_a_value_that_is_written_into_is_a_slot_with_copy(function, node):
    x = torch.randn(32, 4)
    host = looked_at(function, x)
    (slot,) = [slot for slot in slots_of(host.graph) if slot.node.name == node]
    assert slot.copy
    value, gradients = host(x), gradients_after(host, x)
    for phase in (Phase.ISOLATED, Phase.BLENDED):
        grown = looked_at(function, x)
        grown.load_state_dict(host.state_dict())
        Germinate(node, "a", nn.Linear(4, 4), GraftSpec(copy=True), phase)(grown)
        assert same_bits(grown(x), value)
        after = gradients_after(grown, x)
        assert same_bits({name: after[name] for name in gradients}, gradients)


@pytest.mark.parametrize(
    ("function", "name", "reason"),
    [
        (
            base_read_after_a_view_is_written,
            "view",
            r"changed in place later, and fc, which shares its memory",
        ),
        (base_written_after_a_view_is_taken, "view", r"changed in place later, and fc, which shares its mem"),
        (sibling_views, "getitem", r"changed in place later, and a copy would not preserve its strides"),
        (alias_of_an_input, "view", r"changed in place later and shares its memory with x"),
        (alias_of_a_parameter, "view", r"changed in place later and shares its memory with "),
        (expanded, "detach", r"changed in place later, and a copy would not preserve its strides"),
    ],
)
def test_hazards(function, name, reason):
    host = looked_at(function)
    assert reason in rejections_of(host.graph)[name]


def test_a_value_written_before_it_is_read_needs_no_copy():
    host = looked_at(writes_itself)
    (slot,) = [slot for slot in slots_of(host.graph) if slot.name == "fc"]
    assert slot.copy
    host = looked_at(lambda model, x: model.fc(x).relu_().exp())
    (slot,) = [slot for slot in slots_of(host.graph) if slot.name == "relu_"]
    assert not slot.copy
