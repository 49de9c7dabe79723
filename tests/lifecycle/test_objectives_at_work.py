"""What isolated seeds learn: alive at birth, bounded by the trusted radius, and by shadow passes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from sklearn.datasets import load_digits
from torch import nn

import fxgraft
from fxgraft_passes.objectives import DEFAULT_RADIUS
from tests.harness import assert_same_bits, frozen, gradients, loss_of, state, traced_once
from tests.lifecycle.test_isolation_properties import SEEDS, germinate_all
from tests.seed_modules import Counting, Drawing, Scale
from tests.strategies import Plan, plans


class Images(nn.Module):
    """Slots of two forms, ``(N, C, H, W)`` and ``(N, D)``, each behind a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.conv = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 3)
        self.hidden, self.fc = nn.Linear(16, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = torch.relu(self.conv(torch.relu(self.before(x))))
        return self.fc(torch.relu(self.hidden(images.flatten(1))))


# What stands between its source and its slot is repeated by `parallel`.
SOURCES = {"conv": "before", "fc": "flatten"}


def source_of(blueprint: str, slot: str) -> str | None:
    return SOURCES[slot] if blueprint == "parallel" else None


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(Images(), (torch.randn(2, 1, 4, 4),))


@functools.cache
def accepting(blueprint: str, mode: str) -> list[str]:
    host = traced()
    found = []
    for slot in ("conv", "fc"):
        try:
            fxgraft.SeedManager(host).germinate(slot, blueprint, mode=mode, source=source_of(blueprint, slot))
        except fxgraft.errors.BlueprintError:
            continue
        found.append(slot)
        host = traced()
    return found


@pytest.mark.parametrize("stage", ["TRAINING", "BLENDING", "shadow"])
@pytest.mark.parametrize("mode", ["residual", "convex"])
@pytest.mark.parametrize("blueprint", fxgraft.blueprints.names())
def test_every_blueprint_is_alive_at_birth(blueprint: str, mode: str, stage: str) -> None:
    slots = accepting(blueprint, mode)
    assert slots, "no slot of a small convolutional network accepts it"
    for slot in slots:
        host = traced()
        manager = fxgraft.SeedManager(host)
        manager.germinate(slot, blueprint, mode=mode, source=source_of(blueprint, slot))
        parameters = list(manager.seed_parameters())
        if not parameters:
            continue
        x = torch.randn(2, 1, 4, 4)
        if stage == "shadow":
            with manager.shadow():
                loss_of(host(x)).backward()
        else:
            if stage == "BLENDING":
                manager.blend(next(iter(manager.seeds)), steps=2)
                manager.step()
            loss_of(host(x)).backward()
        alive = [p for p in parameters if p.grad is not None and bool(p.grad.any())]
        assert alive, f"{blueprint} at {slot} has no gradient at all"


OPTIMIZERS: dict[str, Callable[[fxgraft.Host], torch.optim.Optimizer]] = {
    "sgd": lambda host: torch.optim.SGD(host.parameters(), 0.1),
    "adamw": lambda host: torch.optim.AdamW(host.parameters(), 1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_thousand_isolated_steps_stay_within_the_trusted_radius(name: str) -> None:
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    y = torch.tensor(data.target)
    train, held_out = slice(0, 1200), slice(1200, None)
    host = fxgraft.trace(nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10)), (x[:2],))
    optimizer = OPTIMIZERS[name](host)
    manager = fxgraft.SeedManager(host, optimizer)
    seed = manager.germinate("1", "mlp", name="a")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3000):
        batch = torch.randint(0, 1200, (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(host(x[train][batch]), y[train][batch]).backward()
        optimizer.step()
        manager.step()
    with torch.no_grad():
        h = torch.relu(host.get_submodule("0")(x[held_out]))
        assert seed.module(h).norm() <= 2 * DEFAULT_RADIUS * h.norm()
        assert seed.module(h).norm() > 0
        at_zero = F.cross_entropy(host(x[held_out]), y[held_out])
        with manager.at_alpha("a", 1.0):
            at_one = F.cross_entropy(host(x[held_out]), y[held_out])
    assert at_one != at_zero
    assert at_one <= 1.5 * at_zero


@given(plans(), SEEDS)
def test_a_shadow_pass_leaves_the_host_alone(plan: Plan, wanted: list) -> None:
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    germinate_all(host, manager, [(n, s, m, "shadow") for n, s, m, _ in wanted])
    loss_of(host(plan.batch(1))).backward()
    seeds = [buffer.clone() for buffer in host.buffers()]
    code = [region.code for region in host.regions.values()]
    flags = [p.requires_grad for p in host.parameters()]
    before = frozen((gradients(host), state(host), torch.get_rng_state()))
    with manager.shadow():
        loss_of(host(plan.batch(2))).backward()
    assert_same_bits((gradients(host), state(host), torch.get_rng_state()), before, "the host")
    assert_same_bits(list(host.buffers()), seeds, "buffers")
    assert [region.code for region in host.regions.values()] == code
    assert [p.requires_grad for p in host.parameters()] == flags


@pytest.mark.parametrize("mode", ["residual", "convex"])
def test_a_shadow_pass_gives_a_seed_the_gradient_at_alpha_one(mode: str) -> None:
    plan = Plan(("linear",))
    model = plan.build()
    plain, seed = copy.deepcopy(model), nn.Linear(4, 4)
    host = fxgraft.trace(model, (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    manager.germinate("body.linear0", seed, mode=mode, objective="shadow")
    loss_of(host(plan.batch(1))).backward()
    assert seed.weight.grad is None or not seed.weight.grad.any()
    seed.zero_grad()
    with manager.shadow():
        loss_of(host(plan.batch(1))).backward()
    h = plain.body.linear0(plain.stem(plan.batch(1))).detach()
    end = h + seed(h) if mode == "residual" else seed(h)
    expected = torch.autograd.grad(loss_of(plain.head(end)), seed.weight)[0]
    torch.testing.assert_close(seed.weight.grad, expected)


def test_a_shadow_pass_that_raises_leaves_the_host_alone() -> None:
    plan = Plan(("linear", "batch_norm", "dropout"))
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    manager.germinate("body.linear0", lambda slot: Drawing(), name="a")
    manager.germinate("body.norm1", Counting(), name="b")
    manager.germinate("body", Scale(), name="c")
    manager.blend("c", to=0.5, steps=1)
    manager.step()
    before = frozen((dict(host.state_dict()), torch.get_rng_state()))
    code = [region.code for region in host.regions.values()]

    def fail() -> None:
        with manager.shadow():
            host(plan.batch(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert_same_bits((dict(host.state_dict()), torch.get_rng_state()), before, "state")
    assert [region.code for region in host.regions.values()] == code
    assert all(p.requires_grad for p in host.parameters())
