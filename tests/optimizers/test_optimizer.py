"""Seeds in optimizers: one group each, under every scheduler, and gone without a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxgraft
from tests.harness import assert_same_bits, gradients, loss_of, train
from tests.lifecycle.test_isolation_properties import SEEDS, germinate_all
from tests.seed_modules import FITTING, Poison, Scale, Still
from tests.strategies import Plan, plans

PLAN = Plan(("linear", "batch_norm"))
SLOT = "body.linear0"


def split_groups(model: nn.Module) -> list[dict[str, Any]]:
    flat = [p for p in model.parameters() if p.dim() < 2]
    return [
        {"params": [p for p in model.parameters() if p.dim() >= 2]},
        {"params": flat, "weight_decay": 0.0},
    ]


def named_groups(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(model.named_parameters())}]


KINDS: dict[str, Callable[[nn.Module], list[torch.optim.Optimizer]]] = {
    "sgd": lambda m: [torch.optim.SGD(m.parameters(), 1e-2, momentum=0.9)],
    "sgd fused": lambda m: [torch.optim.SGD(m.parameters(), 1e-2, momentum=0.9, fused=True)],
    "adamw": lambda m: [torch.optim.AdamW(m.parameters(), 1e-2)],
    "adamw foreach": lambda m: [torch.optim.AdamW(m.parameters(), 1e-2, foreach=True)],
    "adamw fused": lambda m: [torch.optim.AdamW(m.parameters(), 1e-2, fused=True)],
    "two groups": lambda m: [torch.optim.AdamW(split_groups(m), 1e-2)],
    "named": lambda m: [torch.optim.AdamW(named_groups(m), 1e-2)],
    "two optimizers": lambda m: [torch.optim.SGD([g], 1e-2) for g in split_groups(m)],
}


class Together:
    """Several optimizers with the calls of one."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        self.optimizers = optimizers

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def memberships(optimizers: list[torch.optim.Optimizer]) -> Counter[int]:
    return Counter(id(p) for o in optimizers for g in o.param_groups for p in g["params"])


@given(plans(), SEEDS, st.sampled_from(list(KINDS)))
def test_a_parameter_is_in_one_group(plan: Plan, wanted: list, kind: str) -> None:
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    optimizers = KINDS[kind](host)
    manager = fxgraft.SeedManager(host, optimizers)
    germinate_all(host, manager, wanted)

    def check() -> None:
        everything = [*host.host_parameters(), *manager.seed_parameters()]
        assert memberships(optimizers) == Counter(id(p) for p in everything if p.requires_grad)
        for group in (g for o in optimizers for g in o.param_groups if "param_names" in g):
            assert len(group["param_names"]) == len(group["params"]) == len(set(group["param_names"]))

    check()
    train(host, Together(optimizers), [plan.batch(1)], lambda i: manager.step())  # type: ignore[arg-type]
    names = list(manager.seeds)
    manager.blend(names[0], steps=1)
    manager.step()
    manager.fossilize(names[0])
    check()
    for name in names[1:]:
        manager.cull(name)
    check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_trained_and_the_host_as_without(kind: str) -> None:
    batches = [PLAN.batch(i) for i in range(6)]
    plain = PLAN.build()
    expected = train(plain, Together(KINDS[kind](plain)), batches)  # type: ignore[arg-type]
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    optimizers = KINDS[kind](host)
    manager = fxgraft.SeedManager(host, optimizers)
    start: dict[str, torch.Tensor] = {}

    def after(i: int) -> None:
        manager.step()
        if i == 1:
            seed = manager.germinate(SLOT, lambda slot: nn.Linear(4, 4), name="a")
            start.update({n: p.detach().clone() for n, p in seed.module.named_parameters()})

    train(host, Together(optimizers), batches, after).assert_same(expected)  # type: ignore[arg-type]
    moved = {n: not torch.equal(p, start[n]) for n, p in manager.seeds["a"].module.named_parameters()}
    assert moved == {"weight": True, "bias": True}


def test_a_parameter_joins_the_group_of_its_kind() -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    optimizers = KINDS["two groups"](host)
    manager = fxgraft.SeedManager(host, optimizers)
    module = manager.germinate(SLOT, nn.Linear(4, 4)).module
    matrices, flat = ({id(p) for p in g["params"]} for g in optimizers[0].param_groups)
    assert id(module.weight) in matrices
    assert id(module.bias) in flat


@pytest.mark.parametrize("begins", ["after a step", "before any step", "paused in the first step"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_seed_in_a_group_of_the_fused_sgd_moves_as_in_another(nesterov: bool, begins: str) -> None:

    def weight(fused: bool) -> torch.Tensor:
        torch.manual_seed(0)
        host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
        settings = {"momentum": 0.9, "nesterov": nesterov, "fused": fused}
        optimizer = torch.optim.SGD(host.parameters(), 1e-2, **settings)
        manager = fxgraft.SeedManager(host, optimizer)
        if begins == "after a step":
            train(host, optimizer, [PLAN.batch(0)], lambda i: manager.step())
        seed = manager.germinate(SLOT, nn.Linear(4, 4))
        if begins == "paused in the first step":
            manager.pause(seed)
            train(host, optimizer, [PLAN.batch(0)], lambda i: manager.step())
            manager.resume(seed)
        train(host, optimizer, [PLAN.batch(i) for i in range(3)], lambda i: manager.step())
        return seed.module.weight.detach()

    torch.testing.assert_close(weight(fused=True), weight(fused=False))


@pytest.mark.parametrize("begins", ["after a step", "before any step"])
def test_blocks_in_a_group_of_the_fused_sgd_train(begins: str) -> None:
    blocks = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)])
    host = fxgraft.trace(blocks, (torch.ones(2, 4),))
    optimizer = torch.optim.SGD(host.parameters(), 1e-2, momentum=0.9, fused=True)
    manager = fxgraft.SeedManager(host, optimizer)
    if begins == "after a step":
        train(host, optimizer, [torch.ones(2, 4)], lambda i: manager.step())
    manager.deepen("", 1, init="copy", optimizer_state="copy")
    train(host, optimizer, [torch.ones(2, 4)] * 2, lambda i: manager.step())
    states = [optimizer.state[p] for p in optimizer.param_groups[0]["params"]]
    assert all(state["momentum_buffer"] is not None for state in states)


def test_what_the_fused_sgd_cannot_begin_with_is_refused_by_name() -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    optimizer = torch.optim.SGD(host.parameters(), 1e-2, momentum=0.9, dampening=0.1, fused=True)
    with pytest.raises(fxgraft.errors.BlueprintError, match=r"SGD\(fused=True\).*foreach=True"):
        fxgraft.SeedManager(host, optimizer).germinate(SLOT, nn.Linear(4, 4))


def test_frozen_parameters_and_none_at_all_are_legal() -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    optimizers = KINDS["adamw"](host)
    manager = fxgraft.SeedManager(host, optimizers)
    before = memberships(optimizers)
    manager.germinate(SLOT, nn.Linear(4, 4).requires_grad_(False), name="frozen")
    manager.germinate(SLOT, Still(), name="still")
    assert memberships(optimizers) == before
    train(host, optimizers[0], [PLAN.batch(i) for i in range(2)], lambda i: manager.step())
    manager.blend("still", steps=1)
    manager.step()
    loss_of(host(PLAN.batch(0))).backward()
    manager.cull("frozen")
    manager.fossilize("still")
    assert memberships(optimizers) == before


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_an_overflow_in_a_seed_does_not_skip_the_step_of_the_host(value: str, fused: bool) -> None:
    def run(grow: bool) -> tuple[fxgraft.Host, list[float]]:
        host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
        optimizer = torch.optim.AdamW(host.parameters(), 1e-2, fused=fused)
        manager, scaler = fxgraft.SeedManager(host, optimizer), torch.amp.GradScaler("cpu", init_scale=64.0)
        if grow:
            manager.germinate(SLOT, FITTING[value], name="bad")
            manager.germinate(SLOT, Scale(), name="good")
        scales = []
        for i in range(4):
            optimizer.zero_grad()
            scaler.scale(loss_of(host(PLAN.batch(i)))).backward()
            scaler.step(optimizer)
            scaler.update()
            manager.step()
            scales.append(scaler.get_scale())
        if grow:
            assert_same_bits(manager.seeds["bad"].module.weight, torch.tensor(1.0), "the bad seed")
            assert not torch.equal(manager.seeds["good"].module.weight, torch.tensor(0.5))
        return host, scales

    (plain, expected), (grown, scales) = run(grow=False), run(grow=True)
    assert scales == expected
    for name, tensor in plain.state_dict().items():
        assert_same_bits(grown.state_dict()[name], tensor, name)


def test_clipping_the_host_does_not_feel_a_seed() -> None:
    batches = [PLAN.batch(i) for i in range(4)]

    def run(grow: bool) -> Any:
        host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
        optimizer = KINDS["sgd"](host)[0]
        manager = fxgraft.SeedManager(host, optimizer)
        if grow:
            manager.germinate(SLOT, Scale(100.0), objective="straight_through")
        clip = lambda: nn.utils.clip_grad_norm_(host.host_parameters(), 0.1)  # noqa: E731
        return train(host, optimizer, batches, lambda i: manager.step(), clip)

    run(grow=True).assert_same(run(grow=False))


def test_gradients_of_seeds_are_none_when_dropped_and_the_hosts_stay() -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    dropped: list[str | None] = []
    manager = fxgraft.SeedManager(
        host, sinks=[lambda e: e.kind == "gradients_dropped" and dropped.append(e.seed)]
    )
    manager.germinate(SLOT, Poison(float("nan")), name="bad")
    loss_of(host(PLAN.batch(0))).backward()
    assert dropped == ["bad"]
    assert manager.seeds["bad"].module.weight.grad is None
    assert all(g is None or bool(g.isfinite().all()) for g in gradients(host).values())
