"""Modules that are called in a way of their own: compiled before, or with a ``__call__`` of their class."""

from __future__ import annotations

import cProfile
import functools
import logging
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.util.bits import same_bits
from tests.harness import counting_backend

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class NormTanhBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.norm(self.fc(x)).tanh())


class Model(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.head = block, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


def test_a_submodule_that_was_compiled_before(fresh_compiler: None, caplog: pytest.LogCaptureFixture):
    model, plain = Model(NormTanhBlock()), Model(NormTanhBlock())
    plain.load_state_dict(model.state_dict())
    backend = counting_backend()
    model.block.compile(backend=backend)
    model(X)
    plain(X)
    with caplog.at_level(logging.WARNING, "fxgraft"):
        host = fxgraft.trace(model, (X,))
    assert "compiled before it was traced: block" in caplog.text
    assert model.block._compiled_call_impl is not None
    assert "block.fc" in host.slots
    manager = fxgraft.SeedManager(host, check_every=0)
    manager.germinate("block.fc", "mlp")
    assert same_bits(host(X), plain(X))
    host.eval(), plain.eval()
    before = host.block.norm.running_mean.clone()
    assert same_bits(host(X), plain(X))
    assert same_bits(host.block.norm.running_mean, before)
    host.double(), plain.double()
    assert same_bits(host(X.double()), plain(X.double()))


def test_a_submodule_wrapped_by_torch_compile(fresh_compiler: None):
    model, plain = Model(NormTanhBlock()), Model(NormTanhBlock())
    plain.load_state_dict(model.state_dict())
    model.block = torch.compile(model.block, backend="eager")
    keys = list(model.state_dict())
    host = fxgraft.trace(model, (X,))
    assert list(host.state_dict()) == keys
    manager = fxgraft.SeedManager(host, check_every=0)
    slot = next(name for name in host.slots if name.endswith("block.fc") or name.endswith("fc"))
    manager.germinate(slot, "mlp")
    host.eval(), plain.eval()
    before = plain.block.norm.running_mean.clone()
    assert same_bits(host(X), plain(X))
    assert same_bits(host.get_submodule("block._orig_mod.norm").running_mean, before)
    host.double(), plain.double()
    assert same_bits(host(X.double()), plain(X.double()))


class Calls(NormTanhBlock):
    """Prepares its input, and scales its result, in ``__call__``."""

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(x * 2, *args, **kwargs) * 3


def test_a_call_of_its_own():
    model = Model(Calls())
    host = fxgraft.trace(model, (X,))
    manager = fxgraft.SeedManager(host, check_every=0)
    for slot in host.slots:
        manager.germinate(slot, "mlp")
    model.eval(), host.eval()
    assert same_bits(host(X), model(X))
    assert host.explain().fallbacks == 0


def test_a_root_with_a_call_of_its_own():
    model = Calls()
    host = fxgraft.trace(model, (X,))
    manager = fxgraft.SeedManager(host, check_every=0)
    for slot in host.slots:
        manager.germinate(slot, "mlp")
    model.eval(), host.eval()
    assert same_bits(host(X), model(X))


def test_tracing_under_a_profiler():
    calls: list[str] = []
    sys.setprofile(lambda frame, event, argument: calls.append(event))
    try:
        fxgraft.trace(Model(NormTanhBlock()), (X,))
        del calls[:]
        len(calls)
    finally:
        sys.setprofile(None)
    assert calls  # it is at work again


def test_tracing_under_cprofile():
    with cProfile.Profile() as profiler:
        host = fxgraft.trace(Model(NormTanhBlock()), (X,))
        host(X)
    assert "block.fc" in host.slots
    profiler.create_stats()
    assert any(name == "forward" for _, _, name in profiler.stats)


# What a reader who knew nothing of this found


class Appends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out = nn.Linear(6, 4), nn.Linear(6, 6)

    def forward(self, x: Tensor, aux: list[Tensor], seen: dict[str, Tensor]) -> Tensor:
        p = self.gate(x).softmax(-1)
        aux.append(p.mean(0).square().sum())
        seen["p"] = p
        return self.out(x)


class Collects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Appends() for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        aux: list[Tensor] = []
        seen: dict[str, Tensor] = {}
        for layer in self.layers:
            x = layer(x, aux, seen)
        return x * seen["p"].sum(), torch.stack(aux).sum()


def test_lists_that_are_passed_on_and_written_into():
    model = Collects()
    host = fxgraft.trace(model, (X,))
    assert "writes into" in host.opaque["layers.0"]
    manager = fxgraft.SeedManager(host, check_every=0)
    for slot in list(host.slots):
        manager.germinate(slot, "low_rank")
    for ours, theirs in zip(host(X), model(X), strict=True):
        assert same_bits(ours, theirs)


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(x))


@pytest.mark.parametrize("held", [_gelu, lambda x: x.sigmoid() * x, functools.partial(torch.clamp, min=0)])
def test_functions_held_by_modules_are_traced(held: Any):
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(6, 6), nn.Linear(6, 2), held

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            if h.shape[0]:
                h = self.act(h)
            return self.b(h)

    model = M()
    host = fxgraft.trace(model, (X,))
    assert not host.opaque
    fxgraft.SeedManager(host, check_every=0).germinate("a", "mlp")
    assert same_bits(host(X), model(X))
    assert host.explain().fallbacks == 0


@pytest.mark.parametrize("how", ["seed", "fork", "hooks"])
def test_what_is_no_operation_is_no_graph(how: str):
    class M(NormTanhBlock):
        def forward(self, x: Tensor) -> Tensor:
            h = self.fc(x)
            if how == "seed":
                torch.manual_seed(0)
                return h + torch.randn_like(h)
            if how == "fork":
                with torch.random.fork_rng():
                    return h + torch.randn_like(h)
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t):
                return h.tanh()

    model = M()
    host = fxgraft.trace(model, (X,))
    assert "" in host.opaque
    fxgraft.SeedManager(host, check_every=0).germinate("fc", "mlp")
    torch.manual_seed(3)
    expected = model(X)
    torch.manual_seed(3)
    assert same_bits(host(X), expected)


def test_functions_that_close_over_the_model():
    class M(NormTanhBlock):
        def __init__(self) -> None:
            super().__init__()
            self.regularize = lambda h: nn.functional.dropout(h, 0.5, self.training)

        def forward(self, x: Tensor) -> Tensor:
            return self.regularize(self.fc(x))

    model = M()
    host = fxgraft.trace(model, (X,)).eval()
    assert same_bits(host(X), model.eval()(X))


def test_objects_of_the_example_call_are_left_as_they_are():
    class Query:
        def __init__(self) -> None:
            self.x, self.count, self.features = X, 0, []

    class M(NormTanhBlock):
        def forward(self, q: Query) -> Tensor:
            q.count += 1
            h = self.fc(q.x)
            q.features.append(h)
            return h

    query = Query()
    fxgraft.trace(M(), (query,))
    assert query.count == 0
    assert query.features == []
