"""A trace that follows the graphs of an earlier one finds what a trace from the start finds."""

import copy

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.capture._tracer import RegionTracer
from fxgraft.capture.capture import Capture
from fxgraft.capture.earlier_trace import EarlierTrace, KnownGraph
from fxgraft_passes.observe import observation_of
from tests.resizing.models import Attention, Experts
from tests.resizing.test_widening import MODELS


@pytest.fixture
def traced(monkeypatch):
    """The classes of the modules that were traced."""
    found = []
    trace_call = RegionTracer.trace_call

    def counted(self, module, forward):
        found.append(type(module).__name__)
        return trace_call(self, module, forward)

    monkeypatch.setattr(RegionTracer, "trace_call", counted)
    return found


def told(capture):
    """All that a trace has found, without what is another one in each run."""
    regions = {}
    for name, region in capture.regions.items():
        seen = {
            str(node): (now.kind, now.shape, now.dtype, now.strides, now.dense, now.calls, now.read_elsewhere)
            for node in region.base.nodes
            if node.op != "output" and (now := observation_of(node)) is not None
        }
        slots = [(s.name, s.shape, s.dtype, s.copy, s.channels_last) for s in region.slots]
        regions[name] = (str(region.base), sorted(region.form.readable), slots, dict(region.rejected), seen)
    return regions, capture.opaque, capture.left_out, capture.uncompared, capture.runs


def both(host):
    """What is found out of a host by what is known of it, and from the start."""
    traced = host._traced
    known = EarlierTrace(traced.regions, traced.opaque, traced.uncompared, host._external_state)
    example = host.example_call()
    found = Capture(host._root, *example, clone=False, earlier=known)
    return told(found), told(Capture(host._root, *example, clone=False))


@pytest.mark.parametrize("name", MODELS)
def test_each_way_to_grow_wider_leaves_what_a_new_trace_finds(name):
    make, batch = MODELS[name]
    host = fxgraft.trace(make(), (batch,))
    manager = fxgraft.SeedManager(host)
    for group in [group for group in host.channels.values() if group.fixed is None]:
        manager.widen(group.name, group.grain)
        known, new = both(host)
        assert known == new


def test_what_no_condition_speaks_of_is_not_traced_again(traced):
    make, batch = MODELS["gpt, layer norm"]
    host = fxgraft.trace(make(), (batch,))
    manager = fxgraft.SeedManager(host)
    traced.clear()
    manager.widen("blocks.0.mlp.0", 4)
    assert traced == []
    assert host.slots["blocks.0.mlp.0"].shape[-1] == 20
    manager.widen("blocks.0.attn.qkv", 4)  # whose code reads how many heads there are
    assert traced == ["Attention", "Attention"]  # in train and in eval mode
    assert host.slots["blocks.0.attn.qkv"].shape[-1] == 48


class Counting(nn.Module):
    """Its code takes a size of a weight for a constant, and nothing says so."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.up(x)
        return self.down(x.relu() * (x.shape[-1] / next(self.up.parameters()).shape[0]))


def test_a_graph_with_a_size_of_a_weight_in_it_is_made_anew(traced):
    host = fxgraft.trace(Counting(), (torch.randn(2, 4),))
    assert host.regions[""].form.reads_sizes
    manager = fxgraft.SeedManager(host)
    traced.clear()
    manager.widen("up", 2)
    assert traced == ["Counting", "Counting"]
    known, new = both(host)
    assert known == new
    manager.germinate("up", "scale_shift", isolated=False)  # from now on the graph runs
    x = torch.ones(2, 4)
    torch.testing.assert_close(host(x), Counting.forward(host._root, x))


class Branching(nn.Module):
    """Code without a graph, around modules that are called twice, draw random numbers, and have buffers."""

    def __init__(self):
        super().__init__()
        self.stem, self.part, self.head = nn.Linear(4, 6), Part(), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        if x.sum() > -1e9:
            x = self.part(self.part(x))
        return self.head(x)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 6)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return x + self.dropout(self.down(torch.relu(self.norm(self.up(x)))))


def test_code_without_a_graph_keeps_its_boundaries(traced):
    host = fxgraft.trace(Branching(), (torch.randn(5, 4),))
    assert host.opaque.keys() == {""}
    manager = fxgraft.SeedManager(host)
    traced.clear()
    stream = torch.get_rng_state()
    buffers = copy.deepcopy(dict(host.named_buffers()))
    manager.widen("part.up", 2)
    assert traced == []
    assert torch.equal(stream, torch.get_rng_state())
    assert torch.equal(host.part.norm.running_mean[:8], buffers["part.norm.running_mean"])
    known, new = both(host)
    assert known == new


def test_a_graph_that_is_not_what_the_code_does_is_made_anew(traced, monkeypatch):
    host = fxgraft.trace(Attention(), (torch.randn(2, 5, 12),))
    take = KnownGraph.take

    def spoiled(*args):
        form, graph = take(*args)
        node = next(node for node in graph.nodes if node.op == "call_module")
        with graph.inserting_after(node):
            other = graph.call_function(torch.neg, (node,))
        node.replace_all_uses_with(other, lambda user: user is not other)
        return form, graph

    monkeypatch.setattr(KnownGraph, "take", spoiled)
    traced.clear()
    known, new = both(host)
    assert known == new
    assert traced == ["Attention"] * 4


def test_code_that_was_changed_since_is_traced(traced):
    host = fxgraft.trace(Experts(), (MODELS["experts"][1],))
    before, _ = both(host)
    traced.clear()
    other = type("Other", (Experts,), {"forward": lambda self, x: Experts.forward(self, x) * 2})
    host._root.__class__ = other
    known, new = both(host)
    assert known == new != before
    assert traced


def test_on_the_meta_device_too(traced):
    with torch.device("meta"):
        host = fxgraft.trace(MODELS["mlp"][0](), (torch.randn(3, 4),))
    traced.clear()
    known, new = both(host)
    assert known == new
    assert len(traced) == 2  # of the new one
