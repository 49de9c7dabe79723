"""Compiled code is shared by what runs the same code, and by nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft import Stage
from fxgraft.host import engine
from tests.harness import assert_same_bits, counting_backend, frozen

pytestmark = pytest.mark.usefixtures("fresh_compiler")

Act = Callable[[Tensor], Tensor]
SLOPE = 0.5


class ActivationBlock(nn.Module):
    def __init__(self, act: Act, number: int = 0) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.act = act
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.act(self.a(x)))


class Numbered(ActivationBlock):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.act(self.a(x))) * (self.number + 1)


class Held(nn.Module):
    """A seed that holds a function."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.layer(x))


class Reads(Held):
    """A seed that reads a global."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.layer(x), SLOPE)


def leaky(slope: float) -> Act:
    return functools.partial(F.leaky_relu, negative_slope=slope)


def scaled(factor: float) -> Act:
    return lambda x: x * factor


class World:
    """A compiled host whose outputs are compared with those of eager mode."""

    def __init__(self, blocks: list[nn.Module], granularity: str, backend: Any = "aot_eager") -> None:
        torch.manual_seed(0)
        self.x = torch.randn(4, 8)
        self.host = fxgraft.trace(nn.Sequential(*blocks), (self.x,))
        self.host.compile(backend=backend, granularity=granularity)
        self.manager = fxgraft.SeedManager(self.host)
        self.check()

    def check(self, calls: int = 3) -> None:
        """Outputs and gradients, to the bit; the first calls of new code run eager, so several."""
        for _ in range(calls):
            assert_same_bits(self.seen(self.host), self.seen(self.eager), "the host")
        assert [row.distrusted for row in fxgraft.compile_report(self.host).variants if row.distrusted] == []

    def seen(self, model: Callable[[Tensor], Tensor]) -> Any:
        self.host.zero_grad()
        out = model(self.x)
        out.square().sum().backward()
        return frozen([out, *(p.grad for p in self.host.parameters())])

    def eager(self, x: Tensor) -> Any:
        with engine.probing(self.host, self.host.structure, self.host.phase) as model:
            return model(x)

    def germinate(self, slot: str, module: nn.Module, wait: bool, name: str = "a") -> fxgraft.Seed:
        seed = self.manager.germinate(slot, module, name=name, wait=wait)
        while seed.stage is Stage.GERMINATED:
            self.manager._background.wait(60)
            self.manager.step()
        return seed

    def blend(self, name: str = "a") -> None:
        self.manager.blend(name, to=0.5, steps=1)
        self.manager.step()


@pytest.mark.parametrize("wait", [True, False])
def test_blocks_that_hold_other_functions_share_no_code(wait: bool) -> None:
    world = World([ActivationBlock(F.relu), ActivationBlock(torch.tanh), ActivationBlock(F.relu)], "region")
    before = frozen(world.host(world.x))
    world.germinate("1.a", nn.Linear(8, 8), wait)
    world.germinate("2.a", nn.Linear(8, 8), wait, "b")
    world.check()
    assert_same_bits(frozen(world.host(world.x)), before, "the host with isolated seeds")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (F.relu, torch.tanh),
        (scaled(2.0), scaled(3.0)),
        (
            functools.partial(F.leaky_relu, negative_slope=0.1),
            functools.partial(F.leaky_relu, negative_slope=0.2),
        ),
        (nn.PReLU(init=0.1).forward, nn.ELU().forward),
    ],
)
def test_a_seed_that_holds_another_function_has_code_of_its_own(first: Act, second: Act) -> None:
    world = World([ActivationBlock(F.relu)], "host")
    world.germinate("0.a", Held(first), wait=False)
    world.blend()
    world.check()
    world.manager.cull("a")
    world.germinate("0.a", Held(second), wait=False)
    world.blend()
    world.check()


def less(by: float) -> Act:
    def call(x: Tensor, *, by: float = by) -> Tensor:
        return x - by

    return call


def test_a_function_with_keyword_only_defaults_is_compiled_in_the_background(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By their values: torch's artifacts have functions without these."""
    world = World([ActivationBlock(F.relu)], "host")
    for i, by in enumerate((0.5, -0.5)):
        world.germinate("0.a", seed := Held(less(by)), wait=False)
        world.blend()
        world.check()
        report = fxgraft.compile_report(world.host)
        assert (report.artifacts, report.graphs) == (2 * i + 2, 1)
        world.manager.cull("a")
    world.germinate("0.a", seed, wait=False)
    world.blend()
    world.check()
    before = frozen(world.host(world.x))
    seed.act.__kwdefaults__["by"] = 0.25
    assert not torch.equal(world.host(world.x), before)
    world.check()
    assert [record for record in caplog.records if record.name == "fxgraft"] == []


def test_equal_functions_share_their_code() -> None:
    """By code, closure and defaults: not by which object it is."""
    backend = counting_backend()
    double = scaled(2.0)  # which code of a region with a seed looks for, as that very object
    world = World([ActivationBlock(double) for _ in range(3)], "region", backend)
    assert backend.frame_count == 2  # the first block's input needs no gradient
    world.germinate("1.a", Held(scaled(3.0)), wait=True)
    world.manager.cull("a")
    world.germinate("2.a", Held(scaled(3.0)), wait=True)
    world.check()
    assert backend.frame_count == 4


@pytest.mark.parametrize("wait", [True, False])
def test_a_function_that_is_replaced_in_a_live_seed_takes_effect(wait: bool) -> None:
    world = World([ActivationBlock(F.relu)], "host")
    world.germinate("0.a", seed := Held(F.relu), wait)
    world.blend()
    world.check()
    before = frozen(world.host(world.x))
    seed.act = torch.tanh
    assert not torch.equal(world.host(world.x), before)
    world.check()
    seed.act = F.relu
    assert_same_bits(frozen(world.host(world.x)), before, "back again")


@pytest.mark.parametrize("wait", [True, False])
def test_a_global_that_is_changed_takes_effect(wait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World([ActivationBlock(F.relu)], "host")
    world.germinate("0.a", Reads(F.relu), wait)
    world.blend()
    world.check()
    before = frozen(world.host(world.x))
    monkeypatch.setitem(globals(), "SLOPE", 0.0)
    assert not torch.equal(world.host(world.x), before)
    world.check()


@pytest.mark.parametrize("granularity", ["host", "region"])
def test_a_hook_that_is_added_takes_effect(granularity: str) -> None:
    world = World([ActivationBlock(F.relu), ActivationBlock(F.relu)], granularity)
    before = frozen(world.host(world.x))
    handle = world.host.get_submodule("1.b").register_forward_hook(lambda module, args, out: out * 2)
    assert not torch.equal(world.host(world.x), before)
    world.check()
    handle.remove()
    assert_same_bits(frozen(world.host(world.x)), before, "without it")


def test_a_hook_that_cannot_be_compiled_runs_eager_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    world = World([ActivationBlock(F.relu)], "host")
    seen: list[Any] = []

    def look(module: nn.Module, args: Any, out: Tensor) -> None:
        torch._dynamo.graph_break()
        seen.append(out)

    world.host.get_submodule("0.b").register_forward_hook(look)
    for _ in range(3):
        world.host(world.x)
    assert len(seen) == 3
    assert "cannot be compiled" in caplog.text


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(("kind", "graphs"), [(ActivationBlock, 4), (Numbered, 8)])
def test_numbers_of_blocks_split_the_code_that_reads_them(kind: Any, graphs: int, wait: bool) -> None:
    backend = counting_backend()
    world = World([kind(F.relu, i) for i in range(4)], "region", backend if wait else "aot_eager")
    for i in (1, 2):
        world.germinate(f"{i}.a", Held(torch.tanh), wait, f"s{i}")
        world.check()
        for _ in range(50):
            world.manager._background.wait(60)
            world.manager.step()
    world.check()
    assert not wait or backend.frame_count <= graphs
    row = fxgraft.compile_report(world.host)
    before = row.uncompiled_calls
    world.check()
    assert fxgraft.compile_report(world.host).uncompiled_calls == before


@pytest.mark.inductor
def test_under_inductor_a_seed_that_holds_another_function_has_code_of_its_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    host = fxgraft.trace(nn.Sequential(ActivationBlock(F.relu)), (x,))
    host.compile()
    manager = fxgraft.SeedManager(host)

    def check() -> None:
        for _ in range(3):
            out = host(x)
            out.square().sum().backward()
            with engine.probing(host, host.structure, host.phase) as model:
                torch.testing.assert_close(out, model(x))

    check()
    for name, act in (("relu", F.relu), ("tanh", torch.tanh)):
        seed = manager.germinate("0.a", Held(act), name=name, wait=False)
        while seed.stage is Stage.GERMINATED:
            manager._background.wait(120)
            manager.step()
        manager.blend(seed, to=0.5, steps=1)
        manager.step()
        check()
        if name == "relu":
            manager.cull(seed)
    seed.module.act = torch.sigmoid
    check()
    assert fxgraft.compile_report(host).artifacts == 4
