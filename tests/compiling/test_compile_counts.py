"""What compiles, and how often: two graphs for a new structure, none for alpha, stages, known structures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.compiling import variants
from fxgraft.seeds.dropout import SeedDropout
from fxgraft.testing import no_recompiles
from tests.harness import assert_same_bits, counting_backend, loss_of, observed_call
from tests.seed_modules import Drawing, Scale

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class ReluBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.inner(x))


SLOT, TWIN = "0.relu", "1.relu"


class World:
    """A compiled host in training."""

    def __init__(self) -> None:
        self.host = fxgraft.trace(nn.Sequential(ReluBlock(), ReluBlock()), (torch.randn(3, 4),))
        self.backend = counting_backend("eager")
        self.host.compile(backend=self.backend)
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer)
        self.train(2)

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss_of(self.host(torch.randn(3, 4))).backward()
            self.optimizer.step()
            self.manager.step()

    @contextmanager
    def compiling(self, graphs: int) -> Iterator[None]:
        before = self.backend.frame_count
        yield
        assert self.backend.frame_count - before == graphs


def test_a_new_structure_compiles_two_graphs_and_a_life_none() -> None:
    world = World()
    assert world.backend.frame_count == 1
    with world.compiling(2):
        world.manager.germinate(SLOT, Scale(), name="a")
    with no_recompiles():
        world.train(2)
        world.manager.blend("a", to=0.5, steps=3)
        world.train(4)
        assert world.manager.seeds["a"].stage is fxgraft.Stage.HOLDING
        world.manager.blend("a", to=1.0, steps=2, schedule="linear")
        world.train(1)
        world.manager.blend("a", to=0.0, steps=2)
        world.train(3)
        world.manager.cull("a")
        world.train(2)
    assert world.backend.frame_count == 3


def test_a_known_combination_compiles_nothing() -> None:
    """Again the same kind of seed; and a cull into what was live before."""
    world = World()
    world.manager.germinate(SLOT, Scale(), name="a")
    world.manager.germinate(SLOT, Drawing(), name="b")
    world.train()
    with no_recompiles():
        world.manager.cull("b")
        world.train()
        world.manager.cull("a")
        world.train()
        world.manager.germinate(SLOT, Scale(), name="a")
        world.train()
        world.manager.blend("a", steps=1)
        world.train(2)
        world.manager.germinate(SLOT, Drawing(), name="b")
        world.train()
    assert world.backend.frame_count == 5


def test_train_and_eval_and_grad_modes_are_ready_after_a_germination() -> None:
    world = World()
    world.host.eval()
    with torch.no_grad():
        world.host(torch.randn(3, 4))
    world.host.train()
    world.manager.germinate(SLOT, Scale(), name="a")
    with no_recompiles():
        world.train()
        world.host.eval()
        with torch.no_grad():
            world.host(torch.randn(3, 4))
        world.manager.blend("a", steps=1)
        world.manager.step()
        with torch.no_grad():
            world.host(torch.randn(3, 4))
        world.host.train()
        world.train()


def test_fossilizing_compiles_one_graph() -> None:
    world = World()
    world.manager.germinate(SLOT, Scale(), name="a")
    world.manager.blend("a", steps=1)
    world.train(2)
    with world.compiling(1):
        world.manager.fossilize("a")
    with no_recompiles():
        world.train(2)


@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def test_more_structures_than_the_recompile_limit_stay_compiled() -> None:
    """Past eight entries of one code object dynamo runs eager without a word; here it would raise."""
    world = World()
    for i in range(torch._dynamo.config.recompile_limit + 2):
        with world.compiling(2):
            world.manager.germinate(SLOT, nn.Sequential(*(Scale() for _ in range(i + 1))), name="a")
        with no_recompiles():
            world.train()
            world.manager.cull("a")
            world.train()


def test_what_ran_the_longest_time_ago_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "MAX_VARIANTS", 3)
    world = World()
    for name, seed in [("a", Scale()), ("b", nn.Sequential(Scale()))]:
        world.manager.germinate(SLOT, seed, name=name)
        world.manager.cull(name)
        world.train()
    assert len(list(world.host.compiled.variants)) == 3
    with no_recompiles():
        world.manager.germinate(SLOT, nn.Sequential(Scale()), name="b")
        world.manager.cull("b")
    with world.compiling(2):
        world.manager.germinate(SLOT, Scale(), name="a")


def test_a_compiled_life_has_the_bits_of_an_eager_one() -> None:
    def life(compiled: bool) -> list[Any]:
        torch.manual_seed(0)
        host = fxgraft.trace(nn.Sequential(ReluBlock(), ReluBlock()), (torch.randn(3, 4),))
        if compiled:
            host.compile(backend=counting_backend())
        optimizer = torch.optim.SGD(host.parameters(), 1e-2)
        manager = fxgraft.SeedManager(host, optimizer)
        seen: list[Any] = []
        for i in range(9):
            x = torch.randn(3, 4)
            if i == 1:
                manager.germinate(SLOT, lambda slot: Drawing(), name="a")
            if i == 2:
                manager.blend("a", to=0.75, steps=3)
            if i == 4:
                manager.germinate(TWIN, Scale(), name="b", mode="convex")
            if i == 7:
                manager.fossilize("a")
            optimizer.zero_grad()
            seen.append(observed_call(host, x))
            loss_of(host(x)).backward()
            optimizer.step()
            manager.step()
        return seen

    for i, (compiled, eager) in enumerate(zip(life(True), life(False), strict=True)):
        assert_same_bits(compiled, eager, f"step {i}")


def test_the_backward_pass_of_a_compiled_dropout_uses_the_mask_of_the_forward() -> None:
    """A compiler may draw the mask again in backward: it must not be the next one."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))
            self.drop = SeedDropout(0.5, key=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(x * self.weight)

    module = Masked()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        module.zero_grad()
        out = compiled(torch.ones(1000))
        out.sum().backward()
        assert_same_bits(module.weight.grad, out.detach(), "the mask")


def test_a_failed_germination_compiles_nothing() -> None:
    world = World()
    with world.compiling(0), pytest.raises(fxgraft.errors.BlueprintError):
        world.manager.germinate(SLOT, nn.Linear(4, 5))
    with no_recompiles():
        world.train()


def test_a_warm_up_leaves_no_trace() -> None:
    world = World()
    x = torch.randn(3, 4)
    before = (torch.get_rng_state(), observed_call(world.host, x))
    grads = [p.grad.clone() for p in world.host.parameters()]
    seed = world.manager.germinate(SLOT, lambda slot: Drawing(), name="a")
    assert int(seed.module.drop.draws) == 0
    assert_same_bits((torch.get_rng_state(), observed_call(world.host, x)), before, "the host")
    assert_same_bits([p.grad for p in world.host.host_parameters()], grads, "gradients")
    assert all(p.grad is None for p in world.manager.seed_parameters())
