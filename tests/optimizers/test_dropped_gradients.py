"""Gradients that a seed cannot use: dropped for a whole training step, however many passes it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import compiled_autograd

import fxgraft
from tests.harness import Run, assert_same_bits, frozen, host_names, train
from tests.strategies import Plan

PLAN = Plan(("linear", "relu", "linear"))
SLOT = "body.relu"
BATCHES = [PLAN.batch(i) for i in range(4)]


class Switch(nn.Module):
    """A seed whose gradient is not finite while it is on; its value always is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y * 0.1) + _Scaled.apply(y, self.factor)

    def turn(self, on: bool) -> None:
        self.factor.fill_(float("inf") if on else 1.0)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return y * 0.1

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return g * ctx.saved_tensors[0], None


def grown(germinate: bool = True) -> tuple[fxgraft.Host, torch.optim.Optimizer, fxgraft.SeedManager, list]:
    torch.manual_seed(0)
    host = fxgraft.trace(PLAN.build(), (BATCHES[0],))
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    events: list[fxgraft.telemetry.Event] = []
    manager = fxgraft.SeedManager(host, optimizer, sinks=[events.append], check_every=0)
    if germinate:
        manager.germinate(SLOT, Switch(), name="a")
    return host, optimizer, manager, events


def dropped(events: list) -> int:
    return sum(event.kind == "gradients_dropped" for event in events)


def weights(manager: fxgraft.SeedManager) -> list[Tensor]:
    return [p.detach().clone() for p in manager.seed_parameters()]


@pytest.mark.parametrize("bad", [(True, False), (False, True), (True, True)])
def test_one_bad_pass_of_several_spoils_the_step(bad: tuple[bool, bool]) -> None:
    """Accumulated, as GradScaler would have it: what is left would be a part of the gradient."""
    host, optimizer, manager, events = grown()
    seed, plain = manager.seeds["a"].module, [p.detach().clone() for p in host.host_parameters()]
    before, at = weights(manager), frozen(optimizer.state_dict())
    for on, x in zip(bad, BATCHES, strict=False):
        seed.turn(on)
        host(x).sum().backward()
    assert all(p.grad is None for p in manager.seed_parameters())
    optimizer.step()
    manager.step()
    assert_same_bits(weights(manager), before)
    assert frozen(optimizer.state_dict())["state"].keys() - at["state"].keys() <= set(range(len(plain)))
    assert dropped(events) == 1
    # The next step is another one.
    seed.turn(False)
    optimizer.zero_grad()
    host(BATCHES[2]).sum().backward()
    optimizer.step()
    manager.step()
    assert all(not torch.equal(a, b) for a, b in zip(weights(manager), before, strict=True))
    assert dropped(events) == 1


def test_gradients_that_were_set_by_hand_are_looked_at() -> None:
    _, optimizer, manager, events = grown()
    before = weights(manager)
    for p in manager.seed_parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    assert_same_bits(weights(manager), before)
    assert dropped(events) == 1


class OfKind(nn.Module):
    """A seed with one parameter whose gradient is given by hand."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Parameter(torch.zeros(2, 2, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("kind", ["complex", "expanded", "sparse"])
def test_a_gradient_of_any_kind_is_looked_at(kind: str, bad: bool) -> None:
    """Also by the steps that one operation for all cannot look at; those beside it are looked at as well."""
    host, _, manager, events = grown(germinate=False)
    seed = manager.germinate(SLOT, OfKind(torch.complex64 if kind == "complex" else torch.float32), name="a")
    value = torch.full((1, 1), float("nan") if bad else 1.0, dtype=seed.module.second.dtype)
    grads = {
        "complex": torch.ones(2, 2) * value * 1j,
        "expanded": value.expand(2, 2),
        "sparse": (torch.eye(2) * torch.where(torch.eye(2) > 0, value, 1.0)).to_sparse(),
    }
    host(BATCHES[0]).sum().backward()
    seed.module.second.grad = grads[kind]
    manager._lifecycle.gradients._look()
    assert dropped(events) == bad
    assert (seed.module.first.weight.grad is None) == bad


def test_a_float64_default_changes_nothing() -> None:
    torch.set_default_dtype(torch.float64)
    host = fxgraft.trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), (torch.ones(1, 3),))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    manager.germinate(next(iter(host.slots)), "mlp")
    host(torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None for p in manager.seed_parameters())


def test_no_hook_is_left_in_the_optimizer() -> None:
    _, optimizer, manager, _ = grown()
    manager.germinate(SLOT, "mlp", name="b")
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    manager.cull("a")
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    manager.cull("b")
    assert not optimizer._optimizer_step_pre_hooks


# Compiled autograd


def compiled(fullgraph: bool = False) -> Any:
    return compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=fullgraph))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("stage", "fullgraph"), [("TRAINING", True), ("BLENDING", False)])
def test_seeds_train_under_compiled_autograd(stage: str, fullgraph: bool) -> None:
    """As without, to the bit; and nothing is compiled anew from step to step."""

    def run(germinate: bool) -> tuple[Run, fxgraft.SeedManager]:
        host, optimizer, manager, _ = grown(germinate)
        if germinate and stage == "BLENDING":
            manager.blend("a", to=0.0, steps=100)

        def after(step: int) -> None:
            manager.step()
            if step == 1:
                torch.compiler.set_stance("fail_on_recompile")

        try:
            return train(host, optimizer, BATCHES, after), manager
        finally:
            torch.compiler.set_stance("default")

    before = weights(grown()[2])
    with compiled(fullgraph):
        ours, manager = run(True)
    ours.assert_same(run(False)[0])
    assert all(not torch.equal(a, b) for a, b in zip(weights(manager), before, strict=True))


@pytest.mark.usefixtures("fresh_compiler")
def test_overflows_and_pauses_under_compiled_autograd() -> None:
    """For an overflow of a seed GradScaler skips no step of the host; the seed stays where it was."""

    def run(overflows: bool) -> tuple[fxgraft.Host, fxgraft.SeedManager, list]:
        host, optimizer, manager, events = grown()
        manager.germinate("body.linear0", "mlp", name="paused")
        manager.pause("paused")
        manager.seeds["a"].module.turn(overflows)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for x in BATCHES[:2]:
            optimizer.zero_grad()
            scaler.scale(host(x).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            manager.step()
        assert scaler.get_scale() == 4.0
        return host, manager, events

    with compiled():
        (host, fine, of_fine), (same, spoiled, of_spoiled) = run(False), run(True)
    at_birth = run_of_nothing()
    for name in host_names(host):
        assert_same_bits(same.get_parameter(name), host.get_parameter(name), name)
    assert_same_bits(weights(spoiled), weights(at_birth))
    assert not torch.equal(weights(fine)[0], weights(at_birth)[0])
    assert_same_bits(weights(fine)[4:], weights(at_birth)[4:], "the paused seed")
    assert (dropped(of_fine), dropped(of_spoiled)) == (0, 2)


def run_of_nothing() -> fxgraft.SeedManager:
    manager = grown()[2]
    manager.germinate("body.linear0", "mlp", name="paused")
    return manager
