"""Calls with arguments that are no plain tensors: generated where that can be, named where it cannot."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fxgraft
from fxgraft.compiling._calls import CallKind, why_not_again
from fxgraft.compiling._opened import opened
from fxgraft.testing import no_recompiles

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Pair(NamedTuple):
    left: torch.Tensor
    right: float


@dataclass
class Batch:
    x: torch.Tensor
    pair: Pair
    scale: float = 2.0
    inner: Any = None
    made: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self.note = "an attribute that is no field"


@dataclass(frozen=True, slots=True)
class Slotted:
    x: torch.Tensor


class Cache:
    """As those of transformers: an object of its own, that nothing is known of."""

    def __init__(self) -> None:
        self.value = torch.ones(4)


def batch(size: int = 3) -> Batch:
    return Batch(torch.randn(size, 4), Pair(torch.randn(size, 4), 0.5), inner=[Slotted(torch.ones(4))])


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, given: Any) -> torch.Tensor:
        more = given.value if isinstance(given, Cache) else given.pair.left * given.scale
        return torch.relu(self.inner(x)) + more


class World:
    def __init__(self, given: Any) -> None:
        torch.manual_seed(0)
        self.given, self.x = given, torch.randn(3, 4)
        self.host = fxgraft.trace(Reads(), (self.x, given))
        self.host.compile(backend="aot_eager")
        self.manager = fxgraft.SeedManager(self.host)
        self.train(2)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.host(self.x, self.given).square().mean().backward()
            self.manager.step()


def test_dataclasses_are_opened_and_made_again() -> None:
    given = batch()
    leaves, form = pytree.tree_flatten(opened([given]))
    assert sum(isinstance(leaf, torch.Tensor) for leaf in leaves) == 3
    (made,) = pytree.tree_unflatten(leaves, form)
    assert type(made) is Batch
    assert vars(made).keys() == vars(given).keys()
    assert made.pair.left is given.pair.left
    assert made.inner[0].x is given.inner[0].x
    assert made.inner[0] is not given.inner[0]
    assert pytree.tree_flatten(opened([batch()]))[1] == form


def test_what_holds_itself_has_an_end() -> None:
    given = batch()
    given.inner = given
    assert CallKind.of(nn.Linear(1, 1), (given,), {}) is None


@pytest.mark.parametrize("wait", [True, False])
def test_a_change_is_compiled_for_calls_with_dataclasses(
    wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(batch())
    if wait:
        world.manager.germinate("relu", "low_rank", name="a")
    with no_recompiles():
        if not wait:
            world.manager.germinate("relu", "low_rank", name="a", wait=False)
            while world.manager.seeds["a"].stage is fxgraft.Stage.GERMINATED:
                world.manager._background.wait(60)
                world.train(1)
        world.train(2)
    report = fxgraft.compile_report(world.host)
    assert report.uncompiled_calls == 0
    assert (report.artifacts > 0) is not wait
    assert "cannot be generated" not in caplog.text


@pytest.mark.parametrize("wait", [True, False])
def test_calls_that_cannot_be_generated_are_named_once(wait: bool, caplog: pytest.LogCaptureFixture) -> None:
    world = World(Cache())
    assert "cannot be generated" not in caplog.text  # nothing has grown yet
    for name in ("a", "b"):
        world.manager.germinate("relu", "low_rank", name=name, wait=wait)
        for _ in range(20):
            world.manager._background.wait(60)
            world.train(1)
    assert all(seed.stage is fxgraft.Stage.TRAINING for seed in world.manager.seeds.values())
    assert (
        caplog.text.count("the host has calls that cannot be generated (argument 1 is, or holds, Cache)") == 1
    )
    report = fxgraft.compile_report(world.host)
    assert report.unprepared == {"": "argument 1 is, or holds, Cache"}
    assert "the host has calls that nothing is compiled for before they come: argument 1" in str(report)


def test_a_block_whose_calls_cannot_be_generated_is_named() -> None:
    blocks = nn.ModuleList(Reads() for _ in range(2))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = blocks, nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x: torch.Tensor, given: Any) -> torch.Tensor:
            return self.head(self.blocks[1](self.blocks[0](x, given), given))

    given = Cache()
    host = fxgraft.trace(Model(), (torch.randn(3, 4), given))
    host.compile(backend="aot_eager", granularity="region")
    assert fxgraft.compile_report(host).unprepared == {}
    host(torch.randn(3, 4), given)
    report = fxgraft.compile_report(host)
    assert report.unprepared == {f"blocks.{i}": "argument 1 is, or holds, Cache" for i in range(2)}
    assert "block 'blocks.1' has calls that nothing is compiled for" in str(report)


def test_the_reason_names_the_argument() -> None:
    module, x = nn.Linear(1, 1), torch.ones(1)
    assert why_not_again(module) is None
    assert CallKind.of(module, (x,), {"mask": [torch.eye(2).to_sparse()]}) is None
    assert why_not_again(module) == "argument 'mask' is, or holds, a tensor of layout torch.sparse_coo"
    assert CallKind.of(module, (x, namedtuple("Two", "a b")(x, object())), {}) is None
    assert why_not_again(module) == "argument 1 is, or holds, object"
