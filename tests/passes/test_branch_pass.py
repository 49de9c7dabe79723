"""A branch around what lies between two nodes: where it reads, where it comes in, what it refuses."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from fxgraft.util.bits import same_bits
from fxgraft_passes import Cull, Fossilize, Germinate, GraftSpec, Phase, Verify
from fxgraft_passes.errors import IsolationError, SlotError
from fxgraft_passes.graft import MODES
from fxgraft_passes.sites import chain_at, exit_of, host_value
from tests.passes.graphs import gradients_after, identity_of, state_of, traced


class Wide(nn.Module):
    """The value between is wider than the ends."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 6)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(6, 3)
        self.out = nn.Tanh()

    def forward(self, x):
        return self.out(self.fc2(self.relu(self.fc1(x))))


class Overwritten(Wide):
    """The source is written into before the branch comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)


def between(source="fc1", node="fc2", mode="residual", phase=Phase.ISOLATED, name="a", host=None, **spec):
    host = host or traced(Wide())
    Germinate(node, name, nn.Linear(6, 3), GraftSpec(mode, **spec), phase, source=source)(host)
    return host


X = torch.randn(5, 4)


@pytest.mark.parametrize(("mode", "phase"), list(product(MODES, Phase)))
def test_at_birth_value_and_host_gradients_are_those_without_the_branch(mode, phase):
    if phase is Phase.SHADOW:  # runs a seed that learns at alpha 1
        return
    host = traced(Wide())
    value, gradients = host(X), gradients_after(host, X)
    between(mode=mode, phase=phase, host=host)
    assert same_bits(host(X), value)
    after = gradients_after(host, X)
    assert same_bits({k: after[k] for k in gradients}, gradients)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_blended_it_is_the_branch_written_by_hand(mode, alpha):
    host = between(mode=mode, phase=Phase.BLENDED)
    host._seeds.a.alpha.fill_(alpha)
    host._seeds.a.learning.fill_(False)
    early = host.fc1(X)
    h, s = host.fc2(host.relu(early)), host._seeds.a.module(early.detach())
    by_hand = {True: h + alpha * s, False: s if alpha == 1 else h + alpha * (s - h)}[mode != "convex"]
    assert same_bits(host(X), host.out(by_hand))


def test_isolated_nothing_reaches_the_host_through_the_branch():
    host = between(phase=Phase.BLENDED)
    host._seeds.a.alpha.fill_(1.0)
    host._seeds.a.learning.fill_(False)
    host(X).sum().backward()
    early = host.fc1(X)
    plain = host.out(host.fc2(host.relu(early)) + host._seeds.a.module(early.detach()))
    expected = torch.autograd.grad(plain.sum(), [host.fc1.weight, host.fc2.weight])
    assert same_bits([host.fc1.weight.grad, host.fc2.weight.grad], list(expected))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("net", [Wide, Overwritten])
def test_a_fossil_lets_gradients_through_both_ways(mode, alpha, net):
    host = between(mode=mode, host=traced(net()), copy_source=net is Overwritten)
    Fossilize("a", alpha)(host)
    assert exit_of(host.graph, "a")[0].source == "fc1"
    parameters = [p for n, p in host.named_parameters() if not n.startswith("_seeds")]
    got = torch.autograd.grad(host(X).sum(), parameters, allow_unused=True)
    early = host.fc1(X)
    h, s = host.fc2(torch.relu(early)), host._seeds.a.module(early)
    value = h + alpha * s if mode != "convex" else h + alpha * (s - h)
    if alpha == 1:
        value = h + s if mode != "convex" else s
    expected = torch.autograd.grad(host.out(value).sum(), parameters, allow_unused=True)
    assert [a is None for a in got] == [b is None for b in expected]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_source_that_is_written_into_is_copied():
    host = traced(Overwritten())
    value, gradients = host(X), gradients_after(host, X)
    between(host=host, copy_source=True)
    seen = []
    host._seeds.a.module.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    assert same_bits(host(X), value)
    assert same_bits(seen[0], host.fc1(X))
    after = gradients_after(host, X)
    assert same_bits({k: after[k] for k in gradients}, gradients)


@pytest.mark.parametrize(("mode", "phase"), list(product(MODES, Phase)))
def test_cull_undoes_a_branch(mode, phase):
    host = traced(Wide())
    before = state_of(host)
    between(mode=mode, phase=phase, host=host)
    assert Verify()(host).modified is False
    Cull("a")(host)
    assert state_of(host) == before


def test_marks():
    host = between()
    site, exit_node = exit_of(host.graph, "a")
    assert (site.node, site.source) == ("fc2", "fc1")
    assert host_value(exit_node).name == "fc2"
    (reader,) = readers(host)
    assert [n.name for n in reader.all_input_nodes] == ["fc1"]
    both = Germinate("fc2", "b", nn.Linear(3, 3))(host).graph_module  # "b" is no branch
    assert [node.name for node in readers(both)] == [reader.name]


def readers(host):
    """The nodes by which branches read their sources."""
    return [node for node in host.graph.nodes if "reads_source" in node.meta]


@pytest.mark.parametrize("branch_first", [True, False])
def test_it_reads_what_leaves_the_source_whoever_came_first(branch_first):
    """A seed at the source and those at the slot, germinated in either order."""
    host = traced(Wide())
    steps = [
        lambda: between(host=host, name="m", phase=Phase.BLENDED),
        lambda: Germinate("fc1", "z", nn.Linear(6, 6), phase=Phase.BLENDED)(host),
        lambda: Germinate("fc2", "b", nn.Linear(3, 3), phase=Phase.BLENDED)(host),
        lambda: between(host=host, name="k", phase=Phase.BLENDED),
    ]
    for step in steps if branch_first else reversed(steps):
        step()
    names = "mbk" if branch_first else "kbm"
    for name in "mzbk":
        host.get_submodule(f"_seeds.{name}").alpha.fill_(1.0)
    early = host.fc1(X)
    early = early + host._seeds.z.module(early)
    value = host.fc2(host.relu(early))
    for name in names:
        value = value + host.get_submodule(f"_seeds.{name}").module(value if name == "b" else early)
    assert same_bits(host(X), host.out(value))
    (fc2,) = host.graph.find_nodes(op="call_module", target="fc2")
    assert [site.name for site, _ in chain_at(fc2)] == list(names)
    order = [n.name for n in host.graph.nodes if "reads_source" in n.meta]
    assert [n.meta["graft_of"] for n in host.graph.nodes if n.name in order] == [
        name for name in names if name != "b"
    ]
    Verify()(host)
    for name in "zbmk":
        Cull(name)(host)
    assert host.code == traced(Wide()).code


@pytest.mark.parametrize(
    ("source", "given"),
    [("out", "it comes later"), ("nowhere", "no such node"), ("output", "it comes later")],
)
def test_what_is_no_earlier_node_is_refused_and_changes_nothing(source, given):
    host = traced(Wide())
    before, identity = state_of(host), identity_of(host)
    with pytest.raises(SlotError, match=f"source '{source}' of a seed at node 'fc2'.*{given}"):
        between(source=source, host=host)
    assert (state_of(host), identity_of(host)) == (before, identity)


def test_the_slot_as_its_own_source_is_a_plain_graft():
    plain, own = traced(Wide()), traced(Wide())
    Germinate("fc1", "a", nn.Linear(6, 6))(plain)
    Germinate("fc1", "a", nn.Linear(6, 6), source="fc1")(own)
    assert own.code == plain.code


def test_verify_finds_a_branch_that_reads_its_source_attached():
    host = between()
    seed = next(n for n in host.graph.nodes if n.name == "seed")
    seed.args = (next(n for n in host.graph.nodes if n.name == "fc1"),)
    with pytest.raises(IsolationError, match="seed reads fc1 without a detach"):
        Verify()(host)


def test_a_source_among_the_inputs_is_read_behind_all_of_them():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, y):
            return self.fc(x) + y

    host = traced(Two())
    Germinate("fc", "a", nn.Linear(4, 4), source="x")(host)
    assert [n.op for n in host.graph.nodes][:2] == ["placeholder", "placeholder"]
    assert same_bits(host(X, X), host.fc(X) + X)
