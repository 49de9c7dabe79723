"""Gates between stages, the cool-down after a cull, and pausing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import SlotError, StageError
from fxgraft.gates import DEFAULT_GATES, Blended, Gate, Sane, Trained, Verdict, Worthy
from fxgraft.seeds.seed import amend
from fxgraft.telemetry import Memory
from tests.harness import assert_same_bits, frozen, loss_of, snapshot, traced_plan, train
from tests.seed_modules import Scale
from tests.strategies import Plan

PLAN = Plan(("linear", "batch_norm"))
SLOT = "body.linear0"
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
}


def grown(optimizer: str = "adamw", **options: Any) -> tuple[fxgraft.Host, Any, SeedManager, fxgraft.Seed]:
    torch.manual_seed(0)
    host = traced_plan(PLAN)
    trainer = OPTIMIZERS[optimizer](host.parameters())
    manager = SeedManager(host, trainer, **options)
    return host, trainer, manager, manager.germinate(SLOT, Scale(), name="a")


def hold(manager: SeedManager, seed: fxgraft.Seed, to: float = 1.0) -> None:
    manager.blend(seed, to=to, steps=1)
    manager.step()


def measured(seed: fxgraft.Seed, without: float, within: float) -> None:
    amend(seed, loss_without=without, loss_with=within)


def test_sane() -> None:
    seed = grown()[3]
    assert Sane()(seed)
    with torch.no_grad():
        seed.module.weight.fill_(float("nan"))
    verdict = Sane()(seed)
    assert not verdict
    assert "weight" in verdict.reason


def test_trained_needs_steps_and_a_measurement() -> None:
    host, optimizer, manager, seed = grown()
    gate = Trained(steps=2)
    assert "0 of 2" in gate(seed).reason
    train(host, optimizer, [PLAN.batch(0), PLAN.batch(1)], lambda _: manager.step())
    assert "never measured" in gate(seed).reason
    assert not gate(seed)
    measured(seed, 1.0, 1.0)
    assert gate(seed)
    measured(seed, 1.0, 1.05)
    assert not gate(seed)
    assert Trained(2, tolerance=0.1)(seed)


@pytest.mark.parametrize("within", [float("nan"), float("inf")])
@pytest.mark.parametrize("gate", [Trained(0), Worthy(), Trained(0) & Worthy()])
def test_a_measurement_that_is_no_number_does_not_pass(within: float, gate: Gate) -> None:
    seed = grown()[3]
    measured(seed, 1.0, within)
    assert not gate(seed)


def test_worthy() -> None:
    seed = grown()[3]
    assert not Worthy(-1e9)(seed)
    measured(seed, 1.0, 0.9)
    assert Worthy(0.05)(seed)
    assert not Worthy(0.2)(seed)
    measured(seed, 1.0, 1.0)
    assert not Worthy()(seed)


def test_blended() -> None:
    _, _, manager, seed = grown()
    assert not Blended()(seed)
    manager.blend(seed, steps=2)
    manager.step()
    assert not Blended()(seed)
    manager.step()
    assert Blended()(seed)


def test_a_composition_passes_if_all_pass_and_says_which_did_not() -> None:
    class Says(Gate):
        def __init__(self, passed: bool, reason: str):
            self.passed, self.reason = passed, reason

        def __call__(self, seed: fxgraft.Seed) -> Verdict:
            return Verdict(self.passed, self.reason)

    seed = grown()[3]
    yes, no = Says(True, "yes"), Says(False, "no")
    assert (yes & yes & yes)(seed)
    assert (yes & no & yes)(seed).reason == "no"
    assert not (no & yes)(seed)


def test_the_defaults() -> None:
    assert set(DEFAULT_GATES) == {"blend", "fossilize"}
    _, _, manager, seed = grown()
    with torch.no_grad():
        seed.module.weight.fill_(float("inf"))
    with pytest.raises(StageError, match="cannot blend seed 'a': weight has NaN or inf"):
        manager.blend(seed)
    assert seed.stage is Stage.TRAINING
    with torch.no_grad():
        seed.module.weight.fill_(0.5)
    hold(manager, seed)
    with torch.no_grad():
        seed.module.weight.fill_(float("nan"))
    with pytest.raises(StageError, match="fossilize"):
        manager.fossilize(seed)
    assert seed.stage is Stage.HOLDING


def test_a_closed_gate_changes_nothing_and_is_reported() -> None:
    sink = Memory()
    host, optimizer, manager, seed = grown(gates={"blend": Trained(0), "fossilize": Worthy()}, sinks=[sink])
    before = snapshot(host, PLAN.batch(1), [optimizer])
    with pytest.raises(StageError, match="never measured"):
        manager.blend(seed)
    assert_same_bits(snapshot(host, PLAN.batch(1), [optimizer]), before, "the host")
    manager.measure(seed, lambda: float(seed.alpha == 0) + 0 * loss_of(host(PLAN.batch(5))))
    hold(manager, seed)
    manager.fossilize(seed)
    gates = [(e.data["action"], e.data["passed"]) for e in sink.of_kind("gate_event")]
    assert gates == [("blend", False), ("blend", True), ("fossilize", True)]


def test_a_measurement_compares_losses_at_two_alphas_and_leaves_no_trace() -> None:
    host, optimizer, manager, seed = grown()
    before = snapshot(host, PLAN.batch(1), [optimizer])
    host.eval()
    seen = []

    def evaluate() -> torch.Tensor:
        seen.append((seed.alpha, torch.is_grad_enabled()))
        return loss_of(host(PLAN.batch(5)))

    contribution = manager.measure(seed, evaluate, at=0.5)
    host.train()
    assert seen == [(0.0, False), (0.5, False)]
    assert contribution == seed.contribution == seed.loss_without - seed.loss_with
    assert contribution != 0
    assert_same_bits(snapshot(host, PLAN.batch(1), [optimizer]), before, "the host")


def test_no_gates() -> None:
    _, _, manager, seed = grown(gates={})
    with torch.no_grad():
        seed.module.weight.fill_(float("nan"))
    hold(manager, seed)
    manager.fossilize(seed)
    assert seed.stage is Stage.FOSSILIZED


def test_a_slot_cools_down_after_a_cull() -> None:
    _, _, manager, seed = grown(cooldown=3)
    manager.cull(seed)
    for left in (3, 2, 1):
        with pytest.raises(SlotError, match=f"{SLOT}.*{left} more steps"):
            manager.germinate(SLOT, "mlp")
        manager.germinate("stem", "mlp", name=f"elsewhere{left}")
        manager.step()
    manager.germinate(SLOT, "mlp")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stage", ["TRAINING", "BLENDING", "HOLDING"])
def test_a_paused_seed_stands_still_bit_for_bit(optimizer: str, stage: str) -> None:
    host, trainer, manager, seed = grown(optimizer)
    if stage != "TRAINING":
        manager.blend(seed, steps=9 if stage == "BLENDING" else 1)
    train(host, trainer, [PLAN.batch(i) for i in range(3)], lambda _: manager.step())
    assert seed.stage.name == stage
    manager.pause(seed)

    def still() -> Any:
        of_optimizer = {n: dict(trainer.state[p]) for n, p in seed.module.named_parameters()}
        graft = dict(host.graft("a").state_dict())
        return frozen([graft, of_optimizer, [seed.alpha, seed.ramp_step, seed.trained_steps]])

    before, host_before = still(), frozen(list(host.host_parameters()))
    train(host, trainer, [PLAN.batch(i) for i in range(3, 7)], lambda _: manager.step())
    assert_same_bits(still(), before, "the paused seed")
    moved = [not torch.equal(a, b) for a, b in zip(host.host_parameters(), host_before, strict=True)]
    assert sum(moved) > len(moved) // 2, "the host stood still as well"
    manager.resume(seed)
    train(host, trainer, [PLAN.batch(i) for i in range(7, 9)], lambda _: manager.step())
    assert fxgraft.util.bits.same_bits(still()[0], before[0]) is False


def test_a_paused_host_run_is_that_of_an_isolated_seed() -> None:
    """Pausing a seed in TRAINING is not felt by the host."""
    plain = PLAN.build()
    batches = [PLAN.batch(i) for i in range(6)]
    expected = train(plain, OPTIMIZERS["adamw"](plain.parameters()), batches)
    host, trainer, manager, seed = grown()

    def act(step: int) -> None:
        if step in (1, 3):
            (manager.pause if step == 1 else manager.resume)(seed)
        manager.step()

    train(host, trainer, batches, act).assert_same(expected)


def test_a_retarget_while_paused_starts_when_resumed() -> None:
    _, _, manager, seed = grown()
    manager.blend(seed, steps=4, schedule="linear")
    manager.step()
    manager.pause(seed)
    manager.blend(seed, to=0.75, steps=2, schedule="linear")
    for _ in range(5):
        manager.step()
        assert (seed.stage, seed.alpha, seed.ramp_step) == (Stage.BLENDING, 0.25, 0)
    manager.resume(seed)
    manager.step()
    assert seed.alpha == 0.5
    manager.step()
    assert (seed.alpha, seed.stage) == (0.75, Stage.HOLDING)


def test_a_paused_seed_can_be_culled_and_fossilized() -> None:
    host, trainer, manager, seed = grown()
    other = manager.germinate("stem", Scale(), name="b")
    hold(manager, seed)
    manager.pause(seed)
    manager.pause(other)
    manager.fossilize(seed)
    manager.cull(other)
    before = frozen(seed.module.weight)
    train(host, trainer, [PLAN.batch(0)], lambda _: manager.step())
    assert not torch.equal(seed.module.weight, before), "a fossil trains as the host does"


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_only_live_seeds_pause(action: str) -> None:
    _, _, manager, seed = grown()
    hold(manager, seed)
    manager.fossilize(seed)
    with pytest.raises(StageError, match="FOSSILIZED"):
        getattr(manager, action)(seed)
    assert not seed.paused


def test_a_module_with_a_frozen_parameter_pauses() -> None:
    host, trainer, manager, _ = grown()
    module = nn.Linear(4, 4)
    module.bias.requires_grad_(False)
    frozen_one = manager.germinate("stem", module, name="f")
    manager.pause(frozen_one)
    before = frozen(module.weight)
    train(host, trainer, [PLAN.batch(0)], lambda _: manager.step())
    assert_same_bits(frozen(module.weight), before, "weight")
