"""Every blueprint through a life: compiled, in half precision, saved and loaded, fossilized."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import blueprints
from fxgraft.util.bits import same_bits
from tests.harness import assert_same_bits, frozen, loss_of, traced_once

SHAPES = {"NC": (3, 8), "NLC": (2, 5, 8), "NCHW": (2, 8, 4, 4), "any": (3, 8)}
CASES = [
    (name, layout)
    for name in blueprints.names()
    for layout in blueprints.get(name).accepts
    if layout in SHAPES
]


class Model(nn.Module):
    """A slot ``mul`` whose value has any shape, behind two parameters and in front of one."""

    def __init__(self):
        super().__init__()
        self.scale, self.bias, self.out = (nn.Parameter(torch.tensor(v)) for v in (1.5, 0.1, 2.0))

    def forward(self, x):
        return ((x * self.scale) + self.bias).tanh() * self.out


@traced_once
def traced(shape, dtype):
    return fxgraft.trace(Model().to(dtype), (torch.randn(shape, dtype=dtype),))


def life(name, x, steps=3, compiled=False, dtype=torch.float32):
    """A host with one seed, after some steps in training and half a ramp."""
    host = traced(x.shape, dtype)
    if compiled:
        host.compile(backend="aot_eager")
        loss_of(host(x)).backward()
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = fxgraft.SeedManager(host, optimizer)
    manager.germinate("add", name, name="a")
    run(host, optimizer, manager, x, steps)
    manager.blend("a", steps=4)
    run(host, optimizer, manager, x, 2)
    return host, optimizer, manager


def run(host, optimizer, manager, x, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(host(x)).backward()
        optimizer.step()
        manager.step()


def state(host):
    return frozen({key: value for key, value in host.state_dict().items() if value.is_floating_point()})


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_compiled_it_learns_what_it_learns_in_eager(name, layout, fresh_compiler):
    x = torch.randn(SHAPES[layout])
    eager, *_ = life(name, x)
    compiled, *_ = life(name, x, compiled=True)
    for key, value in state(eager).items():
        torch.testing.assert_close(state(compiled)[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "layout"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_follows_the_dtype(name, layout, dtype):
    x = torch.randn(SHAPES[layout], dtype=dtype)
    host, *_ = life(name, x, dtype=dtype)
    assert host(x).dtype == dtype
    assert all(p.dtype == dtype for p in host.parameters())
    assert all(torch.isfinite(p).all() for p in host.parameters())


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_it_learns_under_autocast(name, layout):
    x = torch.randn(SHAPES[layout])
    host = traced(x.shape, x.dtype)
    seed = fxgraft.SeedManager(host).germinate("add", name)
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(host(x)).backward()
    grads = [p.grad for p in seed.module.parameters()]
    assert any(g.any() for g in grads) == (name != "identity")


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_loaded_it_goes_on(name, layout, tmp_path):
    x = torch.randn(SHAPES[layout])
    host, optimizer, manager = life(name, x)
    manager.save(tmp_path / "run")
    again = traced(x.shape, x.dtype)
    other = torch.optim.SGD(again.parameters(), 0.1)
    loaded = fxgraft.SeedManager.load(tmp_path / "run", again, other)
    run(host, optimizer, manager, x, 2)
    run(again, other, loaded, x, 2)
    assert_same_bits(state(again), state(host))


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_as_a_fossil_it_stays_what_it_is(name, layout):
    x = torch.randn(SHAPES[layout])
    host, optimizer, manager = life(name, x)
    run(host, optimizer, manager, x, 2)
    value = host(x)
    manager.fossilize("a")
    assert same_bits(host(x), value)
