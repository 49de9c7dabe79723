"""Modules that are called in a way of their own: compiled before, or with a ``__call__`` of their class."""

from __future__ import annotations

import cProfile
import logging
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.bits import same_bits
from tests.harness import counting_backend

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
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
    model, plain = Model(Block()), Model(Block())
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
    model, plain = Model(Block()), Model(Block())
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


class Calls(Block):
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
        fxgraft.trace(Model(Block()), (X,))
        del calls[:]
        len(calls)
    finally:
        sys.setprofile(None)
    assert calls  # it is at work again


def test_tracing_under_cprofile():
    with cProfile.Profile() as profiler:
        host = fxgraft.trace(Model(Block()), (X,))
        host(X)
    assert "block.fc" in host.slots
    profiler.create_stats()
    assert any(name == "forward" for _, _, name in profiler.stats)
