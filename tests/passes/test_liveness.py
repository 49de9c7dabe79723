"""Which values matter, where code writes in place: against runs in which one value is changed."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx as fx
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.util.bits import same_bits
from fxgraft_passes.observe import observation_of

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
DEAD = "is a dead branch"

Step = tuple[str, int, int]


class Program(nn.Module):
    """Straight code over a list of values, of which ``kept`` are returned."""

    def __init__(self, steps: list[Step], kept: list[int]):
        super().__init__()
        self.steps, self.kept = steps, kept
        self.register_buffer("memory", torch.zeros(3, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        values = [x * 1.5, x.tanh()]
        for kind, one, two in self.steps:
            a, b = values[one % len(values)], values[two % len(values)]
            match kind:
                case "add":
                    values.append(a + b * 0.5)
                case "tanh":
                    values.append(a.tanh())
                case "new":
                    values.append(torch.zeros(3, 4, dtype=torch.float64))
                case "view":
                    values.append(a.view(3, 4))
                case "detached":
                    values.append(a.detach())
                case "turned":
                    values.append(a.t().t())
                case "setitem":
                    a[:, :2] = b[:, 2:]
                case "all":
                    a[...] = b
                case "add_":
                    a.add_(b)
                case "part":
                    a[1:].mul_(0.5).add_(b[:2])
                case "index_put_":
                    a.index_put_((torch.tensor([0, 2]),), b[:2])
                case "copy_":
                    a.copy_(b)
                case "zero_":
                    a.zero_()
                case "out":
                    torch.add(a, 1.0, out=b)
                case "pack":
                    parts = torch.split(a, 2, dim=1)
                    values.append(torch.cat((parts[1], b[:, 2:]), 1))
                case "dict":
                    values.append(sum({"a": a, "b": b}.values()))
                case "buffer":
                    self.memory.add_(a)
                case "data":
                    a.data[0] = b.detach()[1]
        return [values[k % len(values)] for k in self.kept]


KINDS = [
    "add", "tanh", "new", "view", "detached", "turned", "setitem", "all", "add_", "part", "index_put_",
    "copy_", "zero_", "out", "pack", "dict", "buffer", "data",
]  # fmt: skip
PARTIAL = {"setitem", "part", "index_put_", "data", "pack"}
"""What writes or takes parts of a value: that nobody feels it may show in numbers only, not in the graph."""
PROGRAMS = st.tuples(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9)), max_size=7),
    st.lists(st.integers(0, 9), min_size=1, max_size=2),
)


ALL, MEMORY, READERS = "all", "memory", "readers"


class Changed(fx.Interpreter):
    """A run in which the value of one node is another one.

    Who feels it: all that are given it (``ALL``); all that look into its memory (``MEMORY``); all that
    are given it and do not write over the whole of it (``READERS``).
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, node: fx.Node | None = None, felt_by: str = ALL):
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self._node, self._felt_by = node, felt_by

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n is self._node and self._felt_by == MEMORY:
            value.data.add_(0.37)
        return value + 0.37 if n is self._node and self._felt_by == ALL else value

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        node = self._node
        if self._felt_by != READERS or node not in n.all_input_nodes or writes_over(n, node):
            return super().fetch_args_kwargs_from_env(n)
        kept = self.env[node]
        self.env[node] = kept + 0.37
        try:
            return super().fetch_args_kwargs_from_env(n)
        finally:
            self.env[node] = kept


def writes_over(user: fx.Node, node: fx.Node) -> bool:
    """Whether ``user`` writes over the whole of ``node``, and reads nothing of it."""
    if user.target is operator.setitem:
        return user.args[0] is node and user.args[1] is ... and user.args[2] is not node
    into = user.args[0] if user.target in ("copy_", "zero_") else user.kwargs.get("out")
    return into is node and [*user.args, *user.kwargs.values()].count(node) == 1


def effects(module: nn.Module, graph: fx.Graph, *change: Any) -> list[Tensor]:
    """All that is left of a run: outputs, inputs and buffers."""
    kept, x = module.memory.clone(), X.clone()
    with torch.no_grad():
        outputs = Changed(module, graph, *change).run(x)
        left = [*(out.clone() for out in outputs), x, module.memory.clone()]
        module.memory.copy_(kept)
    return left


def compare(steps: list[Step], kept: list[int]) -> None:
    program = Program(steps, kept)
    try:
        program(X.clone())
    except RuntimeError:  # overlapping memory, say
        return
    host = fxgraft.trace(program, (X.clone(),))
    if "" not in host.regions or host.regions[""].is_boundary:
        return
    region = host.regions[""]
    plain = effects(region.module, region.base)
    for node in region.base.nodes:
        seen = observation_of(node)
        if seen is None or seen.kind != "Tensor" or node.op not in ("call_function", "call_method"):
            continue
        if not seen.dtype.is_floating_point:
            continue
        changed = not same_bits(effects(region.module, region.base, node), plain)
        if DEAD in node.meta.get("no_slot", ""):
            if changed and seen.written_later:  # who writes into it would have written another tensor
                ways = (effects(region.module, region.base, node, way) for way in (MEMORY, READERS))
                changed = not any(same_bits(found, plain) for found in ways)
            assert not changed, f"{node} is not dead in\n{region.code}"
        elif "slot" in node.meta and not PARTIAL & {s[0] for s in steps}:
            assert changed, f"{node} is dead in\n{region.code}"


@given(program=PROGRAMS)
def test_dead_is_what_changes_nothing(program: tuple[list[Step], list[int]]) -> None:
    compare(*program)


def test_a_value_that_is_written_onto_itself_is_no_dead_one() -> None:
    compare([("add", 0, 0), ("view", 0, 0), ("all", 0, 0)], [3])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_step(kind: str) -> None:
    for kept in ([0], [1], [2], [0, 1, 2]):
        compare([("new", 0, 0), (kind, 2, 1)], kept)
        compare([("tanh", 1, 0), (kind, 0, 2), ("add", 0, 2)], kept)
        compare([("tanh", 1, 0), ("view", 2, 0), (kind, 3, 1), (kind, 1, 0)], kept)


class Half(nn.Module):
    """Writes what a layer gives into a part of a new tensor."""

    def __init__(self, write: Callable[[Tensor, Tensor], Any], norm: bool = False):
        super().__init__()
        self.layer, self.write = nn.Linear(6, 4), write
        self.norm = nn.BatchNorm1d(4) if norm else None
        self.register_buffer("memory", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 8)
        value = self.layer(x)
        if self.norm is not None:
            self.norm(value)
            return out
        self.write(out, value)
        return out.sin()


def written(out: Tensor, value: Tensor) -> None:
    out[:, :4] = value


WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "setitem": written,
    "setitem all": lambda out, value: operator.setitem(out, slice(None), torch.cat((value, value), 1)),
    "copy_ into a view": lambda out, value: out[:, :4].copy_(value),
    "add_ into a view": lambda out, value: out.narrow(1, 2, 4).add_(value),
    "index_put_": lambda out, value: out.t().index_put_((torch.arange(4),), value.t()),
    "detached": lambda out, value: out.detach()[:, :4].add_(value.detach()),
    "a view of a view": lambda out, value: out.view(-1, 2, 4)[:, 1].copy_(value),
    "select": lambda out, value: out.t().select(0, 3).copy_(value[:, 0]),
    "index_copy_": lambda out, value: out.index_copy_(1, torch.arange(4), value),
    "masked_scatter_": lambda out, value: out.masked_scatter_(
        torch.ones(5, 8) > 0, torch.cat((value, value))
    ),
    "lerp_": lambda out, value: out[:, 4:].lerp_(value, 0.5),
}


@pytest.mark.parametrize("how", WRITES)
def test_what_is_written_into_another_tensor_is_a_slot(how: str) -> None:
    torch.manual_seed(0)
    net, x = Half(WRITES[how]), torch.randn(5, 6)
    host = fxgraft.trace(net, (x,))
    assert "layer" in host.slots, host.rejected.get("layer")
    manager = fxgraft.SeedManager(host, check_every=0)
    value = net(x)
    manager.germinate("layer", lambda slot: nn.Linear(4, 4))
    assert same_bits(host(x), value)
    if how != "detached":
        loss, plain = host(x).square().sum(), net(x).square().sum()
        gradients = torch.autograd.grad(loss, [net.layer.weight, net.layer.bias])
        assert same_bits(gradients, torch.autograd.grad(plain, [net.layer.weight, net.layer.bias]))
    manager.blend(next(iter(manager.seeds)), steps=0)
    assert not same_bits(host(x), value)
    manager.cull_all()
    assert same_bits(host(x), value)


@pytest.mark.parametrize("training", [True, False])
def test_what_only_a_buffer_keeps_is_a_slot(training: bool) -> None:
    net, x = Half(written, norm=True).train(training), torch.randn(5, 6)
    host = fxgraft.trace(net, (x,))
    assert ("layer" in host.slots) is training
    if not training:
        assert DEAD in host.rejected["layer"]


def test_a_write_that_is_overwritten_is_dead() -> None:
    def overwritten(out: Tensor, value: Tensor) -> None:
        out[:, :4] = value
        out.fill_(1.0)

    host = fxgraft.trace(Half(overwritten), (torch.randn(5, 6),))
    assert DEAD in host.rejected["layer"]
