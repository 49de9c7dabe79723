"""Code generation: verified, shared between equal regions, and nothing stays behind."""

from __future__ import annotations

import gc
import inspect
import linecache
import weakref

import pytest
import torch
import torch.fx as fx
from torch import nn

import fxgraft
from fxgraft.capture.call_form import CallForm
from fxgraft.capture.codegen import generate
from fxgraft.errors import IsolationError, SlotError
from fxgraft.util.bits import same_bits
from fxgraft_passes import Germinate, Graft
from fxgraft_passes.base import copy_graph


class ScaleBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, scale=None, *, twice=False):
        return self.fc(x).relu() if scale is None else x * scale


def form_of(block, *args, **kwargs):
    return CallForm(block.forward, args or (torch.randn(2, 4),), kwargs)


class Fc(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x).relu()


def graph():
    return fx.symbolic_trace(Fc()).graph


def grown():
    rewritten = copy_graph(graph())
    Germinate("relu", "a", path="_graft_0").rewrite(rewritten)
    return rewritten


def ours():
    """The entries of fxgraft in the table of source lines."""
    return {name for name in linecache.cache if name.startswith("<fxgraft")}


def test_the_function_runs_the_graph_on_any_module():
    block = Fc()
    generated, x = generate(graph(), form_of(block), Fc.forward), torch.randn(2, 4)
    assert same_bits(generated.bound_to(block)(x), block(x))
    assert generated.bound_to(block).__self__ is block
    other = Fc()
    assert same_bits(generated.bound_to(other)(x), other(x))


def test_with_a_graft():
    block, x = Fc(), torch.randn(2, 4)
    value = block(x)
    block._graft_0 = Graft(nn.Linear(4, 4), dtype=torch.float32, device=torch.device("cpu"))
    generated = generate(grown(), form_of(block), Fc.forward)
    assert same_bits(generated.bound_to(block)(x), value)
    assert "_graft_0" in generated.source


def test_equal_graphs_share_one_function():
    first = generate(grown(), form_of(Fc()), Fc.forward)
    second = generate(grown(), form_of(Fc()), Fc.forward)
    assert first.graph is not second.graph
    assert first.function is second.function
    assert first.function is not generate(graph(), form_of(Fc()), Fc.forward).function


def test_other_constants_are_another_function():
    def generated(dtype):
        class Cast(nn.Module):
            def forward(self, x, dtype=torch.float32):
                return x.to(dtype)

        plain = fx.symbolic_trace(Cast(), concrete_args={"dtype": dtype}).graph
        return generate(plain, CallForm(Cast().forward, (torch.randn(2),), {"dtype": dtype}), Cast.forward)

    assert generated(torch.float64).function is not generated(torch.float16).function


def test_a_call_of_another_form_goes_to_the_fallback(caplog):
    block, x = ScaleBlock(), torch.randn(2, 4)
    generated = generate(graph(), form_of(block), ScaleBlock.forward)
    forward = generated.bound_to(block)
    assert same_bits(forward(x), block.fc(x).relu())
    assert same_bits(forward(x, 3.0), x * 3)
    assert "the ScaleBlock was called with other kinds of arguments" in caplog.text


def test_a_leaking_graph_has_no_code():
    leaking = grown()
    nodes = {node.name: node for node in leaking.nodes}
    nodes["seed"].args = (nodes["relu"],)
    known = ours()
    with pytest.raises(IsolationError):
        generate(leaking, form_of(Fc()), Fc.forward)
    assert ours() <= known, "functions of other tests may be collected meanwhile, but none is new"


def test_the_source_can_be_read_while_the_function_lives():
    generated = generate(grown(), form_of(ScaleBlock()), ScaleBlock.forward)
    assert inspect.getsource(generated.function).startswith("def forward(self, x")
    assert inspect.getsource(generated.function) in generated.source
    assert generated.function.__code__.co_filename in ours()


def test_nothing_stays_behind():
    gc.collect()
    before = ours()
    generated = generate(grown(), form_of(Fc()), Fc.forward)
    function, name = weakref.ref(generated.function), generated.function.__code__.co_filename
    assert name in linecache.cache
    del generated
    gc.collect()
    assert function() is None
    assert name not in linecache.cache
    assert ours() <= before


class NewLineName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a\nb": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layers["a\nb"](x))


def test_what_has_no_code_is_refused_by_name():
    x = torch.randn(2, 4)
    host = fxgraft.trace(NewLineName(), (x,))
    manager, expected = fxgraft.SeedManager(host), host(x)
    with pytest.raises(SlotError, match=r"no code can be written for this place.*rename that one"):
        manager.germinate("tanh", "mlp")
    assert not manager.seeds
    assert torch.equal(host(x), expected)
