"""Something raises, or is not finite, in the middle of a step: who catches it can go on, nothing is half."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.controllers import Facts, Link
from tests.harness import assert_same_bits, frozen

X = torch.linspace(-1, 1, 24).view(4, 6)


class FaultError(Exception):
    """What is raised."""


class World:
    """A host with a seed in each stage, in training."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        self.host = fxgraft.trace(model, (X,))
        self.code = self.host.regions[""].code
        self.optimizer = torch.optim.SGD(self.host.parameters(), 0.1, momentum=0.9)
        self.sinks: list[Callable[[Any], None]] = []
        self.manager = SeedManager(self.host, self.optimizer, sinks=[self.sink], check_every=1)
        for name, slot in {"learns": "1", "blends": "3", "holds": "0"}.items():
            self.manager.germinate(slot, "mlp", name=name, hidden=4)
        self.manager.blend("holds", steps=1)
        self.train(1)
        self.manager.blend("blends", steps=6)
        self.train(1)

    def sink(self, event: Any) -> None:
        for each in self.sinks:
            each(event)

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.host(X).square().mean()
            loss.backward()
            self.optimizer.step()
            self.manager.step(loss)

    def assert_whole(self) -> None:
        """The run goes on; and everything can be taken out again, without a trace."""
        self.train(3)
        assert self.manager.seeds["learns"].stage is Stage.TRAINING
        self.manager.cull_all()
        assert self.host.regions[""].code == self.code
        left = {p for group in self.optimizer.param_groups for p in group["params"]}
        assert left == set(self.host.parameters())
        assert set(self.optimizer.state) <= left
        assert not any(p._post_accumulate_grad_hooks for p in self.host.parameters())
        self.train(1)


def raises(*_: Any) -> None:
    raise FaultError


@contextmanager
def in_forward_of(module: nn.Module, error: type[BaseException] = FaultError) -> Iterator[None]:
    def hook(*_: Any) -> None:
        raise error("in forward")

    handle = module.register_forward_pre_hook(hook)
    yield
    handle.remove()


@contextmanager
def in_backward_of(parameter: torch.Tensor) -> Iterator[None]:
    handle = parameter.register_hook(raises)
    yield
    handle.remove()


@contextmanager
def in_optimizer(world: World) -> Iterator[None]:
    handle = world.optimizer.register_step_pre_hook(raises)
    yield
    handle.remove()


FAULTS: dict[str, Callable[[World], Any]] = {
    "the host's forward": lambda w: in_forward_of(w.host.get_submodule("2")),
    "a seed's forward": lambda w: in_forward_of(w.manager.seeds["learns"].module),
    "out of memory in a seed": lambda w: in_forward_of(
        w.manager.seeds["blends"].module, torch.OutOfMemoryError
    ),
    "the host's backward": lambda w: in_backward_of(w.host.get_parameter("0.weight")),
    "a seed's backward": lambda w: in_backward_of(next(w.manager.seeds["blends"].module.parameters())),
    "the optimizer": in_optimizer,
}


@pytest.mark.parametrize("where", FAULTS)
def test_an_exception_in(where: str) -> None:
    world = World()
    with FAULTS[where](world), pytest.raises((FaultError, torch.OutOfMemoryError)):
        world.train()
    world.assert_whole()


def test_an_exception_in_a_controller() -> None:
    """It is the user's, and comes out; the manager is between two steps."""

    class Fails:
        def observe(self, facts: Facts) -> Any:
            raise FaultError

    world = World()
    link = Link(world.manager, Fails(), lambda: 0.0)  # type: ignore[arg-type]
    with pytest.raises(FaultError):
        link.step(1, 0.5)
    world.assert_whole()


def test_an_exception_in_a_sink_is_nobodys() -> None:
    world = World()
    world.sinks.append(raises)
    world.assert_whole()


def test_an_exception_in_a_schedule() -> None:
    world = World()

    armed: list[bool] = []

    def schedule(share: float) -> float:
        if armed:
            raise FaultError
        return share

    world.manager.blend("holds", to=0.0, steps=4, schedule=schedule)
    world.train(1)
    armed.append(True)
    with pytest.raises(FaultError):
        world.train(4)
    world.manager.blend("holds", to=0.0, steps=1)
    world.assert_whole()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["learns", "blends", "holds"])
def test_a_seeds_gradient_that_is_not_finite_costs_the_seed_its_step(name: str, value: float) -> None:
    world = World()
    seed = world.manager.seeds[name].module
    before = frozen(dict(seed.state_dict()))
    handle = next(seed.parameters()).register_hook(lambda g: g * value)
    world.train()
    handle.remove()
    assert_same_bits(dict(seed.state_dict()), before, "the seed")
    assert all(bool(torch.isfinite(p).all()) for p in world.host.parameters())
    world.assert_whole()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_the_hosts_trouble(value: float) -> None:
    """What the optimizer does to the host is what it does without seeds; the seeds keep their weights."""
    world = World()
    before = {n: frozen(p) for n, p in world.host.named_parameters() if n.startswith("_seeds.")}
    world.optimizer.zero_grad()
    loss = world.host(X).square().mean() * value
    loss.backward()
    assert all(p.grad is None for p in world.manager.seed_parameters())
    world.optimizer.zero_grad()  # as any loop that looks at its loss would
    world.manager.step(loss)
    assert_same_bits({n: frozen(p) for n, p in world.host.named_parameters() if n in before}, before, "seeds")
    world.assert_whole()
