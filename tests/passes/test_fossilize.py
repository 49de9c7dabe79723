"""Fossilize: the value stays what it was at that alpha, gradients are whole, no operator is left."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from fxgraft.util.bits import same_bits
from fxgraft_passes import Fossilize, Germinate, GraftSpec, Phase, operators
from fxgraft_passes.graft import MODES
from fxgraft_passes.sites import chain_at
from tests.passes.graphs import (
    InPlace,
    LayerReluLayer,
    gradients_after,
    identity_of,
    input_for,
    state_of,
    traced,
)

BLENDS = (operators.isolated, operators.release, operators.residual, operators.convex, operators.shadowed)


def held(mode, alpha, seed=None, host=None, node="relu", copy=False):
    host = traced(LayerReluLayer()) if host is None else host
    seed = nn.Linear(4, 4) if seed is None else seed
    Germinate(node, "a", seed, GraftSpec(mode, copy=copy), Phase.SETTLED)(host)
    host._seeds.a.alpha.fill_(alpha)
    host._seeds.a.learning.fill_(False)
    return host


def chain(host):
    slot = next(node for node in host.graph.nodes if node.name == "relu")
    return [site.name for site, _ in chain_at(slot)]


@pytest.mark.parametrize(("mode", "alpha"), list(product(MODES, (0.0, 0.3, 0.5, 1.0))))
def test_the_value_stays_to_the_bit(mode, alpha):
    host, x = held(mode, alpha), input_for(LayerReluLayer())
    value = host(x)
    result = Fossilize("a", alpha)(host)
    assert result.modified
    assert result.graph_module is host
    assert same_bits(host(x), value)


@pytest.mark.parametrize("mode", MODES)
def test_at_alpha_zero_the_bits_of_the_host_stay(mode):
    class Zeros(nn.Module):
        def forward(self, x):
            return torch.neg(x) * 1

    host = traced(Zeros())
    Germinate("neg", "a", nn.Identity(), GraftSpec(mode), Phase.SETTLED)(host)
    x = torch.tensor([0.0, -0.0, float("inf"), 1.0])
    value = host(x)
    Fossilize("a", 0.0)(host)
    assert same_bits(host(x), value)


@pytest.mark.parametrize(("mode", "alpha"), list(product(MODES, (0.3, 1.0))))
def test_gradients_are_those_of_the_plain_formula(mode, alpha):
    torch.set_default_dtype(torch.float64)
    host, x = held(mode, alpha), input_for(LayerReluLayer())
    seed = host._seeds.a.module
    Fossilize("a", alpha)(host)
    actual = gradients_after(host, x)

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.seed = host.fc1, host.fc2, seed

        def forward(self, x):
            h = self.fc1(x).relu()
            s = self.seed(h)
            return self.fc2(h + alpha * s if mode != "convex" else (1 - alpha) * h + alpha * s)

    expected = gradients_after(ByHand(), x)
    names = {"seed.weight": "_seeds.a.module.weight", "seed.bias": "_seeds.a.module.bias"}
    assert len(actual) == len(expected) == 6
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[names.get(name, name)], gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("mode", "alpha"), list(product(MODES, (0.5, 1.0))))
def test_no_blend_operator_is_left_and_the_seed_reads_the_host(mode, alpha):
    host = held(mode, alpha)
    Fossilize("a", alpha)(host)
    assert not [node for node in host.graph.nodes if node.target in BLENDS or node.target == "detach"]
    assert "alpha" not in host.code
    (module,) = [node for node in host.graph.nodes if node.target == "_seeds.a.module"]
    assert [str(value) for value in module.args] == ["relu"]


@pytest.mark.parametrize("name", ["a", "b"])
def test_no_op(name):
    host = held("residual", 1.0)
    Fossilize("a")(host)
    before, identity = state_of(host), identity_of(host)
    result = Fossilize(name)(host)
    assert not result.modified
    assert state_of(host) == before
    assert identity_of(host) == identity


@pytest.mark.parametrize(("name", "mode", "alpha"), list(product("abc", MODES, (0.5, 1.0))))
def test_among_others_at_its_slot(name, mode, alpha):
    host, x = traced(LayerReluLayer()), input_for(LayerReluLayer())
    for other in "abc":
        Germinate("relu", other, nn.Linear(4, 4), GraftSpec(mode), Phase.SETTLED)(host)
        getattr(host._seeds, other).alpha.fill_(alpha)
    value = host(x)
    Fossilize(name, alpha)(host)
    assert same_bits(host(x), value)
    assert chain(host) == ["a", "b", "c"]
    Germinate("relu", "bb", nn.Linear(4, 4), before="c")(host)
    assert chain(host) == ["a", "b", "bb", "c"]
    assert same_bits(host(x), value)


@pytest.mark.parametrize(("mode", "alpha"), list(product(MODES, (0.5, 1.0))))
@pytest.mark.parametrize("last", [nn.Tanh(), nn.Identity()], ids=["tanh", "identity"])
def test_an_in_place_consumer(mode, alpha, last):
    seed = nn.Sequential(nn.Conv2d(3, 3, 1), last)
    host, x = held(mode, alpha, seed, traced(InPlace()), "conv", copy=True), input_for(InPlace())
    value = host(x)
    Fossilize("a", alpha)(host)
    assert same_bits(host(x), value)
    assert "_seeds.a.module.0.weight" in gradients_after(host, x)


def test_a_seed_that_returns_its_input_before_an_in_place_consumer():
    host, x = held("convex", 1.0, nn.Identity(), traced(InPlace()), "conv", copy=True), input_for(InPlace())
    value = host(x)
    Fossilize("a", 1.0)(host)
    assert same_bits(host(x), value)
    assert "conv.weight" in gradients_after(host, x)


class OtherDtype(nn.Module):
    """A seed whose output has another dtype than its slot, as happens under autocast."""

    def __init__(self, dtype):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dtype = dtype

    def forward(self, x):
        return self.linear(x.float()).to(self.dtype)


@pytest.mark.parametrize(("mode", "alpha"), list(product(MODES, (0.5, 1.0))))
@pytest.mark.parametrize(
    ("host_dtype", "seed_dtype"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_the_dtype_of_the_slot_stays(mode, alpha, host_dtype, seed_dtype):
    host = traced(LayerReluLayer()).to(host_dtype)
    held(mode, alpha, OtherDtype(seed_dtype), host)
    x = torch.randn(3, 4, dtype=host_dtype)
    value = host(x)
    assert value.dtype is host_dtype
    Fossilize("a", alpha)(host)
    assert same_bits(host(x), value)
