"""The isolation check finds planted leaks of four kinds, and finds nothing in a clean run."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import IsolationError
from fxgraft.lifecycle.isolation_check import check
from fxgraft.telemetry import Memory
from tests.harness import assert_same_bits, frozen, loss_of, train
from tests.seed_modules import Counting, Drawing, Scale
from tests.strategies import Plan

PLAN = Plan(("linear", "batch_norm", "dropout_module", "counter", "linear"))
SLOT = "body.linear0"
BATCH = PLAN.batch(3)


class Borrows(nn.Module):
    """Computes with a parameter of the host that no register of its own shows: no detach cuts that."""

    def __init__(self, of_host: nn.Module):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4) * 0.1)
        self._hidden = [of_host]

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight + self._hidden[0].weight)


class Writes(nn.Module):
    """Writes into a buffer of the host."""

    def __init__(self, buffer: Tensor):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))
        self._hidden = [buffer]
        self.armed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.armed:
            self._hidden[0].add_(0.5)
        return self.scale * x


class InPlace(nn.Module):
    """Changes the host's value, through an alias that the version counter of its input does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.armed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.armed:
            x.data.mul_(1.25)
        return self.scale * x


class Undetached(nn.Module):
    """Finds its way back to the host's value with its history."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (self.seen[-1] if self.seen and self.seen[-1].shape == x.shape else x)


def grown(compiled: bool = False, **options: Any) -> tuple[fxgraft.Host, Any, SeedManager, Memory]:
    torch.manual_seed(0)
    sink = Memory()
    host = fxgraft.trace(PLAN.build(), (BATCH,))
    if compiled:
        host.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(host.parameters(), 0.01)
    return host, optimizer, SeedManager(host, optimizer, sinks=[sink], **options), sink


def leak(kind: str, host: fxgraft.Host, manager: SeedManager) -> str:
    """Plant one, live and in BLENDING; return the name of what it is felt in."""
    inner = host.body
    module: Any
    if kind == "detach missing":
        module = Undetached()
        inner.linear0.register_forward_hook(lambda m, args, out: module.seen.append(out))
        manager.germinate(SLOT, module, name="leak")
        found = "body.linear0.weight"
    elif kind == "parameter shared":
        module = Borrows(inner.linear4)
        manager.germinate(SLOT, module, name="leak")
        found = "body.linear4.weight"
    elif kind == "buffer written":
        module = Writes(inner.count3)
        manager.germinate(SLOT, module, name="leak")
        module.armed = True
        found = "body.count3"
    else:
        module = InPlace()
        manager.germinate(SLOT, module, name="leak")
        module.armed = True
        found = "stem.weight"
    return found


@pytest.mark.parametrize("kind", ["parameter shared", "buffer written", "in-place change", "detach missing"])
@pytest.mark.parametrize("stage", ["TRAINING", "BLENDING"])
def test_planted_leaks_are_found_and_named(kind: str, stage: str) -> None:
    if kind in ("buffer written", "in-place change") and stage == "BLENDING":
        stage = "TRAINING"
    host, optimizer, manager, sink = grown(check_every=1)
    felt_in = leak(kind, host, manager)
    if stage == "BLENDING":
        manager.blend("leak", steps=50, schedule="linear")
        manager.step()
    train(host, optimizer, [PLAN.batch(i) for i in range(3)], lambda _: manager.step())
    assert manager.monitor.checks
    assert manager.monitor.violations
    violations = {e.data["name"]: e.data["magnitude"] for e in sink.of_kind("violation_recorded")}
    assert felt_in in violations
    assert violations[felt_in] > 0
    metrics = manager.metrics()
    assert metrics["fxgraft/isolation/violations"][""] == len(sink.of_kind("violation_recorded"))
    assert metrics["fxgraft/seed/violations"]["leak"] > 0


@pytest.mark.parametrize("kind", ["parameter shared", "buffer written", "in-place change"])
def test_strict_raises_out_of_the_training_step(kind: str) -> None:
    host, optimizer, manager, _ = grown(strict=True)
    felt_in = leak(kind, host, manager)
    with pytest.raises(IsolationError, match=f"(?s){felt_in}.*by up to") as caught:
        train(host, optimizer, [PLAN.batch(i) for i in range(2)], lambda _: manager.step())
    assert "Cull" in str(caught.value)
    manager.cull("leak")
    train(host, optimizer, [PLAN.batch(i) for i in range(2)], lambda _: manager.step())


def test_a_shared_parameter_in_a_register_is_refused_at_the_door() -> None:
    host, _, manager, _ = grown()
    with pytest.raises(fxgraft.errors.BlueprintError, match="belongs to the host"):
        manager.germinate(SLOT, host.body.linear4, name="leak")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_clean_soak_reports_nothing(compiled: bool, fresh_compiler: None) -> None:
    host, optimizer, manager, sink = grown(compiled, check_every=1, strict=True)
    stages = set()
    seeds: dict[str, Any] = {
        "residual": "mlp",
        "convex": Drawing(),
        "gated": Counting(),
        "channelwise": Scale(),
    }
    for mode, blueprint in seeds.items():
        manager.germinate(SLOT, blueprint, name=mode, mode=mode)
    manager.germinate("stem", nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Dropout(0.3)), name="norm")

    def act(step: int) -> None:
        manager.step()
        stages.update((s.name, s.stage) for s in manager.seeds.values())
        if step == 1:
            for seed in seeds:
                manager.blend(seed, steps=3 if seed != "gated" else 9)
        if step == 7:
            manager.fossilize("residual")
        if step == 8:
            manager.cull("channelwise")

    train(host, optimizer, [PLAN.batch(i) for i in range(11)], act)
    assert manager.monitor.checks >= 10
    assert manager.monitor.violations == 0
    assert not sink.of_kind("violation_recorded")
    assert {stage for _, stage in stages} >= {Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED}


@pytest.mark.parametrize("mode", ["residual", "convex", "gated", "channelwise"])
@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.BLENDING, Stage.HOLDING])
def test_a_check_leaves_no_trace(mode: str, stage: Stage) -> None:
    host, optimizer, manager, _ = grown(check_every=0)
    manager.germinate(SLOT, Drawing(), name="a", mode=mode)
    manager.germinate("stem", Counting(), name="b")
    if stage is not Stage.TRAINING:
        manager.blend("a", steps=2 if stage is Stage.BLENDING else 1)
        manager.step()
    loss_of(host(BATCH)).backward()

    def look() -> dict[str, Any]:
        return {
            "state": frozen(dict(host.state_dict())),
            "grads": {n: frozen(p.grad) for n, p in host.named_parameters()},
            "codes": {name: region.code for name, region in host.regions.items()},
            "forwards": {
                name: region.module.__dict__.get("forward") for name, region in host.regions.items()
            },
            "rng": (torch.get_rng_state(), random.getstate()),
            "optimizer": frozen(optimizer.state_dict()),
        }

    before, forwards = look(), look()["forwards"]
    state = dict(host.state_dict(keep_vars=True))
    assert check(host, manager.seeds.values(), (BATCH,), {}) == []
    assert_same_bits(look(), before, "the host")
    codes = {n: f.__code__ if f is not None else None for n, f in look()["forwards"].items()}
    assert codes == {n: f.__code__ if f is not None else None for n, f in forwards.items()}
    assert all(host.state_dict(keep_vars=True)[name] is tensor for name, tensor in state.items())


def test_training_with_checks_is_training_without() -> None:
    def run(every: int) -> Any:
        host, optimizer, manager, _ = grown(check_every=every)
        manager.germinate(SLOT, Drawing(), name="a")

        def act(step: int) -> None:
            if step == 2:
                manager.blend("a", steps=3)
            manager.step()

        return train(host, optimizer, [PLAN.batch(i) for i in range(7)], act)

    run(1).assert_same(run(0))


def test_checks_come_after_changes_and_then_at_intervals() -> None:
    host, optimizer, manager, _ = grown(check_every=4)

    def steps(n: int) -> int:
        train(host, optimizer, [PLAN.batch(i) for i in range(n)], lambda _: manager.step())
        return manager.monitor.checks

    assert steps(3) == 0, "nothing lives"
    manager.germinate(SLOT, Scale(), name="a")
    assert steps(1) == 1
    assert steps(3) == 1
    assert steps(1) == 2
    manager.blend("a", steps=100)
    assert steps(1) == 3
    host.eval()
    assert steps(6) == 3, "only training steps are checked"
    host.train()
    assert steps(4) == 4
    manager.cull("a")
    assert steps(9) == 4
    assert host._links.on_call is None


@pytest.mark.parametrize("mode", ["residual", "convex"])
def test_what_is_not_isolated_is_not_checked(mode: str) -> None:
    host, optimizer, manager, _ = grown(check_every=1)

    def checks_in(n: int) -> int:
        before = manager.monitor.checks
        train(host, optimizer, [PLAN.batch(i) for i in range(n)], lambda _: manager.step())
        return manager.monitor.checks - before

    manager.germinate(SLOT, Scale(), name="felt", mode=mode, isolated=False)
    assert checks_in(3) == 0
    manager.germinate(SLOT, Scale(), name="isolated", mode=mode)
    assert checks_in(3) == 3
    manager.blend("isolated", steps=2)
    assert checks_in(1) == 1
    assert manager.seeds["isolated"].stage is Stage.BLENDING
    # At its end a replacement has taken the place of the host's value; a branch stays beside it.
    assert checks_in(3) == (0 if mode == "convex" else 3)


@pytest.mark.parametrize("objective", ["trust", "straight_through", "shadow"])
@pytest.mark.parametrize("mode", ["residual", "convex"])
def test_what_is_not_isolated_may_pass_on_gradients_beside_what_is(mode: str, objective: str) -> None:
    host, optimizer, manager, _ = grown(check_every=1, strict=True)
    manager.germinate(SLOT, Scale(), name="felt", mode=mode, objective=objective, isolated=False)
    manager.germinate("body.linear4", Scale(), name="isolated")
    train(host, optimizer, [PLAN.batch(i) for i in range(3)], lambda _: manager.step())
    manager.blend("isolated", steps=2)
    train(host, optimizer, [PLAN.batch(i) for i in range(3)], lambda _: manager.step())
    assert (manager.monitor.checks, manager.monitor.violations) == (6, 0)


def test_an_interval_of_zero_turns_it_off() -> None:
    host, optimizer, manager, _ = grown(check_every=0)
    leak("parameter shared", host, manager)
    manager.blend("leak", steps=3)
    train(host, optimizer, [PLAN.batch(i) for i in range(5)], lambda _: manager.step())
    assert manager.monitor.checks == 0
    assert host._links.on_call == manager.monitor._inputs.look, "a seed blends"
    manager.cull("leak")
    assert host._links.on_call is None
