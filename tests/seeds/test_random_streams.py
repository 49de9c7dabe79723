"""What a seed draws never moves the host's stream, and is a function of the run's seed and its name."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft.seeds.dropout import SeedDropout, SeedDropout2d
from tests.harness import assert_same_bits, frozen, loss_of, train
from tests.lifecycle.test_isolation_properties import OPTIMIZERS
from tests.seed_modules import Drawing, Scale
from tests.strategies import Plan, plans

PLAN = Plan(("linear", "dropout_module"))


def streams() -> tuple:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


def grown(plan: Plan = PLAN, seed: int = 0, name: str = "a", slot: str = "body.linear0") -> tuple:
    torch.manual_seed(seed)
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    manager.germinate(slot, lambda slot: Drawing(), name=name)
    return host, manager


def weights(manager: fxgraft.SeedManager) -> list:
    return frozen(list(manager.seed_parameters()))


@pytest.mark.parametrize(
    "blueprint",
    [*fxgraft.blueprints.names(), lambda slot: Drawing()],
    ids=lambda b: b if isinstance(b, str) else "factory",
)
def test_a_life_leaves_the_global_streams_alone(blueprint: object) -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.up = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1)
            self.conv = nn.Conv2d(6, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.up(self.enter(x)).relu())

    host = fxgraft.trace(Images(), (torch.randn(2, 4, 4, 4),))
    x = torch.randn(2, 4, 4, 4)
    before = streams()
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    source = "enter" if blueprint == "parallel" else None
    seed = manager.germinate("conv", blueprint, source=source)
    loss_of(host(x)).backward()
    manager.blend(seed, steps=1)
    manager.step()
    loss_of(host(x)).backward()
    manager.fossilize(seed)
    loss_of(host(x)).backward()
    manager.cull(manager.germinate("conv", blueprint, source=source))
    assert_same_bits(streams(), before, "global streams")


@given(plans(), st.integers(0, 60))
def test_dropout_in_a_blended_seed_leaves_the_masks_of_the_host(plan: Plan, number: int) -> None:
    """The seed multiplies by zero: outputs then tell whether the host drew the same masks."""
    batches = [plan.batch(i) for i in range(3)]
    plain = plan.build()
    expected = train(plain, OPTIMIZERS["sgd"](plain.parameters()), batches)
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    slot = list(host.slots)[number % len(host.slots)]
    manager.germinate(slot, nn.Sequential(Scale(0.0, 0.0), nn.Dropout(0.5)), name="a")
    manager.blend("a", steps=1)
    manager.step()
    run = train(host, OPTIMIZERS["sgd"](host.host_parameters()), batches)
    assert torch.equal(run.rng, expected.rng)
    torch.testing.assert_close(run.losses, expected.losses, rtol=0, atol=0)


def test_initialisation_is_keyed_by_run_seed_and_name() -> None:
    torch.rand(3)
    first = weights(grown()[1])
    assert_same_bits(weights(grown()[1]), first, "weights of the same run and name")
    assert weights(grown(seed=1)[1]) != first
    assert weights(grown(name="b")[1]) != first


def test_initialisation_does_not_depend_on_what_was_drawn_before() -> None:
    expected = weights(grown()[1])
    torch.manual_seed(0)
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    manager = fxgraft.SeedManager(host)
    torch.rand(100)
    manager.germinate("stem", lambda slot: Drawing(), name="other")
    manager.germinate("body.linear0", lambda slot: Drawing(), name="a")
    assert_same_bits(frozen(list(manager.seeds["a"].module.parameters())), expected, "weights")


def test_masks_differ_between_draws_names_and_places_and_have_the_right_rate() -> None:
    drop = SeedDropout(0.25, key=1)
    x = torch.ones(40_000)
    first, second = drop(x), drop(x)
    other = SeedDropout(0.25, key=2)(x)
    for mask in (first, second, other):
        assert abs(float((mask == 0).float().mean()) - 0.25) < 0.01
        assert set(mask.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    for a, b in ((first, second), (first, other), (first[1:], first[:-1])):
        both = float(((a == 0) & (b == 0)).float().mean())
        assert abs(both - 0.0625) < 0.01, "masks are not independent"
    assert_same_bits(SeedDropout(0.25, key=1)(x), first, "the same draw again")
    assert SeedDropout(0.25, key=1).eval()(x) is x


def test_channel_dropout_drops_channels() -> None:
    out = SeedDropout2d(0.5, key=1)(torch.ones(8, 16, 3, 3))
    per_channel = out.flatten(2)
    assert bool((per_channel == per_channel[..., :1]).all())
    assert 0 < float((per_channel == 0).float().mean()) < 1


def test_germination_in_another_thread_leaves_the_draws_of_this_one() -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    manager = fxgraft.SeedManager(host)
    torch.manual_seed(5)
    expected = [torch.rand(10) for _ in range(300)]
    stop = threading.Event()

    def germinate() -> None:
        while not stop.is_set():
            manager.cull(manager.germinate("body.linear0", lambda slot: Drawing()))

    thread = threading.Thread(target=germinate)
    torch.manual_seed(5)
    thread.start()
    try:
        drawn = [torch.rand(10) for _ in range(300)]
    finally:
        stop.set()
        thread.join()
    assert_same_bits(drawn, expected, "draws")
