"""Germinated graph modules that are traced anew, exported, or have attributes like those of grafts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.fx as fx
from torch import nn
from torch.fx.passes.infra.pass_manager import PassManager
from torch.fx.passes.shape_prop import ShapeProp

import fxgraft
from fxgraft.errors import TraceError
from fxgraft.util.bits import same_bits
from fxgraft_passes import Cull, FindSlots, Fossilize, Germinate, GraftSpec, Phase, Verify
from fxgraft_passes.errors import IsolationError, SlotError
from fxgraft_passes.graft import MODES
from fxgraft_passes.sites import chain_at, exit_of
from tests.passes.graphs import LayerReluLayer, gradients_after, identity_of, input_for, state_of, traced

ANEW: dict[str, Callable[[fx.GraphModule], fx.GraphModule]] = {
    "Transformer": lambda m: fx.Transformer(m).transform(),
    "symbolic_trace": fx.symbolic_trace,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "deepcopy": copy.deepcopy,
    "twice": lambda m: fx.symbolic_trace(fx.Transformer(m).transform()),
}
X = input_for(LayerReluLayer())


def grown(phase: Phase, mode: str = "residual", isolated: bool = True, names: str = "ab") -> fx.GraphModule:
    host = traced(LayerReluLayer())
    for name in names:
        spec = GraftSpec(mode, isolated=isolated)
        Germinate("relu", name, nn.Linear(4, 4), spec, phase)(host)
        host.get_submodule(f"_seeds.{name}").alpha.fill_(0.5)
    return host


def text(host: fx.GraphModule) -> list[tuple[str, str]]:
    return [(node.op, str(node.target)) for node in host.graph.nodes]


@pytest.mark.parametrize("how", ANEW)
@pytest.mark.parametrize(("phase", "mode"), list(product(Phase, MODES)))
def test_grafts_are_found_again(how: str, phase: Phase, mode: str) -> None:
    host = grown(phase, mode)
    again = ANEW[how](host)
    assert same_bits(again(X), host(X))
    ours = {name: gradient.clone() for name, gradient in gradients_after(again, X).items()}
    again.zero_grad()
    assert same_bits(sorted(ours.items()), sorted(gradients_after(host, X).items()))
    Verify()(again)
    slot = next(node for node in again.graph.nodes if node.name == "relu")
    assert [site.name for site, _ in chain_at(slot)] == ["a", "b"]
    for name in "ab":
        ours, theirs = (exit_of(module.graph, name)[0] for module in (again, host))
        assert (ours.node, ours.path, ours.source) == (theirs.node, theirs.path, theirs.source)
        assert ours.spec.isolated == theirs.spec.isolated
        assert (ours.spec.mode == "convex") == (theirs.spec.mode == "convex")
    assert Cull("a")(again).modified
    Cull("a")(host)
    assert same_bits(again(X), host(X))
    assert Cull("b")(again).modified
    assert text(again) == text(fx.symbolic_trace(LayerReluLayer()))
    assert not hasattr(again, "_seeds")
    assert not Cull("b")(again).modified


@pytest.mark.parametrize("how", ["Transformer", "symbolic_trace", "pickle"])
@pytest.mark.parametrize("isolated", [True, False])
def test_a_branch_is_found_again(how: str, isolated: bool) -> None:
    host = traced(LayerReluLayer())
    spec = GraftSpec(isolated=isolated)
    Germinate("fc2", "a", nn.Linear(4, 2), spec, Phase.SETTLED, source="fc1")(host)
    again = ANEW[how](host)
    assert Verify()(again).modified is False
    site = exit_of(again.graph, "a")[0]
    assert (site.node, site.source, site.spec.isolated) == ("fc2", "fc1", isolated)
    assert Fossilize("a", 0.5)(again).modified
    host._seeds.a.alpha.fill_(0.5)
    assert same_bits(again(X), host(X))


def test_a_leak_is_found_in_what_was_traced_anew() -> None:
    again = fx.Transformer(grown(Phase.BLENDED, names="a")).transform()
    Verify()(again)
    reader = next(node for node in again.graph.nodes if str(node.target) == "_seeds.a")
    again.graph.create_node("call_method", "sin", (reader,))
    with pytest.raises(IsolationError, match="read outside of the graft"):
        Verify()(again)


@pytest.mark.parametrize("action", [Cull, Fossilize])
def test_what_cannot_be_found_again_is_refused_by_name(action: type) -> None:
    fossil = grown(Phase.SETTLED, names="a")
    Fossilize("a")(fossil)
    through = traced(LayerReluLayer())
    Germinate("relu", "a", nn.Sequential(nn.Linear(4, 4), nn.Tanh()))(through)
    for host in (fossil, through):
        again = fx.symbolic_trace(host)
        before, identity = state_of(again), identity_of(again)
        with pytest.raises(SlotError, match=r"seed 'a'.*traced anew"):
            action("a")(again)
        assert (state_of(again), identity_of(again)) == (before, identity)


class Own(nn.Module):
    """A model with a ``_seeds`` of its own."""

    def __init__(self, own: object) -> None:
        super().__init__()
        self.fc, self._seeds = nn.Linear(4, 4), own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        used = self._seeds(x) if isinstance(self._seeds, nn.Module) else x * len(self._seeds)
        return self.fc(x).relu() + used


OWN: dict[str, Callable[[], object]] = {
    "a module": lambda: nn.Linear(4, 4),
    "a container": lambda: nn.Sequential(nn.Linear(4, 4)),
    "a parameter": lambda: nn.Parameter(torch.ones(4)),
}


@pytest.mark.parametrize("kind", OWN)
def test_a_models_own_attribute_of_that_name_stays(kind: str) -> None:
    model = Own(OWN[kind]())
    host = fx.symbolic_trace(model) if kind != "a parameter" else traced(LayerReluLayer())
    if kind == "a parameter":
        host._seeds = OWN[kind]()
    own, value, before = host._seeds, host(X), state_of(host)
    for name in "ab":
        Germinate("relu", name, nn.Linear(4, 4))(host)
    assert host._seeds is own
    assert same_bits(host(X), value)
    assert host.get_submodule("_seeds_1.a.module")
    again = fx.Transformer(host).transform()
    assert Cull("a")(again).modified
    for name in "ab":
        assert Cull(name)(host).modified
    assert host._seeds is own
    assert not hasattr(host, "_seeds_1")
    assert state_of(host) == before
    if kind != "a parameter":
        with pytest.raises(TraceError, match="Own has '_seeds' of its own"):
            fxgraft.trace(model, (X,))


def test_a_models_own_list_of_that_name_is_no_hindrance() -> None:
    model = Own([1, 2, 3])
    host = fxgraft.trace(model, (X,))
    manager = fxgraft.SeedManager(host, check_every=0)
    manager.germinate("relu", "mlp")
    assert same_bits(host(X), model(X))
    assert model._seeds == [1, 2, 3]


# Metadata


@pytest.mark.parametrize(("mode", "isolated"), list(product(MODES, (True, False))))
def test_new_nodes_tell_of_themselves_as_their_neighbours_do(mode: str, isolated: bool) -> None:
    host = torch.export.export(LayerReluLayer(), (X,)).module()
    spec = GraftSpec(mode, isolated=isolated)
    Germinate("relu", "a", nn.Linear(4, 4), spec, Phase.BLENDED)(host)
    relu = next(node for node in host.graph.nodes if node.name == "relu")
    written = [node for node in host.graph.nodes if "graft_of" in node.meta]
    assert len(written) >= 4
    expected = fx.Interpreter(host)
    expected.garbage_collect_values = False
    expected.run(X)
    for node in written:
        assert node.meta["stack_trace"] == relu.meta["stack_trace"]
        assert node.meta["nn_module_stack"] == relu.meta["nn_module_stack"]
        real = expected.env[node]
        assert (node.meta["val"].shape, node.meta["val"].dtype) == (real.shape, real.dtype)
        assert (node.meta["tensor_meta"].shape, node.meta["tensor_meta"].dtype) == (real.shape, real.dtype)
    assert Cull("a")(host).modified


def test_a_source_of_another_shape_tells_of_its_own() -> None:
    host = torch.export.export(LayerReluLayer(), (X,)).module()
    Germinate("linear_1", "a", nn.Linear(4, 2), source="relu")(host)
    read = next(node for node in host.graph.nodes if node.name == "seed_input")
    seed = next(node for node in host.graph.nodes if node.name == "seed")
    assert (read.meta["val"].shape, seed.meta["val"].shape) == ((3, 4), (3, 2))


@pytest.mark.parametrize("how", ["FindSlots", "ShapeProp", "export"])
def test_channelwise_has_an_alpha_for_each_channel(how: str) -> None:
    if how == "export":
        host = torch.export.export(LayerReluLayer(), (X,)).module()
    else:
        host = fx.symbolic_trace(LayerReluLayer())
        if how == "FindSlots":
            FindSlots(example_args=(X,))(host)
        else:
            ShapeProp(host).propagate(X)
    Germinate("relu", "a", nn.Linear(4, 4), GraftSpec("channelwise"), Phase.SETTLED)(host)
    assert host._seeds.a.alpha.shape == (4,)
    host._seeds.a.alpha.copy_(torch.tensor([1.0, 0.0, 0.5, 0.0]))
    assert host(X).shape == (3, 2)


def test_channelwise_without_a_known_shape_is_refused_and_changes_nothing() -> None:
    host = fx.symbolic_trace(LayerReluLayer())
    before, identity = state_of(host), identity_of(host)
    with pytest.raises(SlotError, match="an alpha for each channel"):
        Germinate("relu", "a", nn.Linear(4, 4), GraftSpec("channelwise"))(host)
    assert (state_of(host), identity_of(host)) == (before, identity)


def test_all_of_it_in_a_pass_manager() -> None:
    host = torch.export.export(LayerReluLayer(), (X,)).module()
    value = host(X)
    passes = [
        Germinate("relu", "a", nn.Linear(4, 4)),
        Verify(),
        Germinate("relu", "b", nn.Linear(4, 4)),
        Cull("a"),
    ]
    grown_host = PassManager(passes)(host).graph_module
    assert same_bits(grown_host(X), value)
    assert same_bits(fx.Interpreter(grown_host).run(X), value)
    assert Cull("b")(grown_host).modified
