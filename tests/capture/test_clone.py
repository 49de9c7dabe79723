"""The clone shares tensors and nothing else: what is installed in it never shows in the model."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.fx as fx
from torch import nn

from fxgraft.capture.clone import clone_tree
from fxgraft.errors import TraceError
from fxgraft.util.bits import same_bits


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scratch", torch.ones(()), persistent=False)

    def forward(self, x):
        return self.linear(x) * self.scratch


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Part()
        self.again = self.first
        self.second = Part()
        self.second.linear.weight = self.first.linear.weight
        self.by_name = {"one": self.first, "rest": [self.second, (self.first,)]}
        self.act = self.second.forward
        self.partial = functools.partial(Part.forward, self.first)
        self.setting = {"width": 4}

    def forward(self, x):
        return self.by_name["one"](x) + self.act(x) + self.partial(x)


@pytest.fixture
def pair():
    model = Model()
    return model, clone_tree(model)


def test_tensors_are_shared_and_modules_are_not(pair):
    model, clone = pair
    assert type(clone) is Model
    ours, theirs = (dict(m.named_modules(remove_duplicate=False)) for m in pair)
    assert list(ours) == list(theirs)
    assert not {id(m) for m in ours.values()} & {id(m) for m in theirs.values()}
    for (name, a), (other, b) in zip(model.named_parameters(), clone.named_parameters(), strict=True):
        assert name == other
        assert a is b
    assert all(a is b for a, b in zip(model.buffers(), clone.buffers(), strict=True))
    assert list(model.state_dict()) == list(clone.state_dict())


def test_shared_modules_and_tied_weights_stay_so(pair):
    _, clone = pair
    assert clone.first is clone.again
    assert clone.first.linear.weight is clone.second.linear.weight


def test_references_from_attributes_lead_into_the_clone(pair):
    model, clone = pair
    assert clone.by_name["one"] is clone.first
    assert clone.by_name["rest"][0] is clone.second
    assert clone.by_name["rest"][1][0] is clone.first
    assert clone.act.__self__ is clone.second
    assert clone.partial.args[0] is clone.first
    assert model.by_name["one"] is model.first
    x = torch.randn(2, 4)
    assert same_bits(clone(x), model(x))


def test_what_is_installed_does_not_show(pair):
    model, clone = pair
    before = {name: set(m.__dict__) for name, m in model.named_modules()}
    clone.first.forward = lambda x: x
    clone.second.register_buffer("extra", torch.zeros(1))
    clone.second.register_forward_hook(lambda *_: None)
    clone.setting["width"] = 5
    clone.eval()
    clone.double()
    del clone.again
    assert {name: set(m.__dict__) for name, m in model.named_modules()} == before
    assert model.training
    assert model.first.training
    assert not model.second._forward_hooks
    assert "extra" not in model.second._buffers
    assert model.again is model.first
    assert model.setting == {"width": 4}
    assert model.first.count.dtype is torch.float32


def test_hooks_come_along(pair):
    model, _ = pair
    calls = []
    model.first.register_forward_hook(lambda *_: calls.append(1))
    clone_tree(model)(torch.randn(2, 4))
    assert calls


def test_containers_that_contain_themselves():
    model = nn.Linear(2, 2)
    model.loop = [model]
    model.loop.append(model.loop)
    clone = clone_tree(model)
    assert clone.loop[0] is clone
    assert clone.loop[1] is clone.loop
    assert model.loop[0] is model


def test_a_graph_module():
    model = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    clone, x = clone_tree(model), torch.randn(2, 4)
    assert same_bits(clone(x), model(x))
    assert clone.get_submodule("0") is not model.get_submodule("0")


def test_lazy_modules_have_no_shapes_yet():
    with pytest.raises(TraceError, match=r"LazyLinear has no shapes yet: run the model once"):
        clone_tree(nn.Sequential(nn.LazyLinear(3)))
