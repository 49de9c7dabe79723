"""Random lives of seeds on a random host, held against plain PyTorch at every step."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

import fxgraft
from fxgraft import Stage
from fxgraft.errors import BlueprintError, StageError
from tests.harness import assert_same_bits, loss_of, observed_call, snapshot
from tests.seed_modules import FITTING
from tests.strategies import Plan, lifecycle_calls, plans

LEGAL = {
    Stage.TRAINING: {"blend", "cull"},
    Stage.BLENDING: {"blend", "cull"},
    Stage.HOLDING: {"blend", "cull", "fossilize"},
    Stage.FOSSILIZED: set(),
}
NUMBERS = st.integers(0, 50)
# Seeds that may be blended: their values stay finite.
SAFE = ["scale", "drawing", "counting", "still"]


class Lives(RuleBasedStateMachine):
    """A host, its manager, and a plain model that is given the host's weights before each comparison."""

    @initialize(plan=plans())
    def begin(self, plan: Plan) -> None:
        self.plan = plan
        self.dtype = torch.float32
        self.plain = plan.build()
        self.host = fxgraft.trace(plan.build(), (plan.batch(0),))
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer)
        self.code = self.all_code()
        self.steps = 0

    def all_code(self) -> list[str]:
        return [region.code for region in self.host.regions.values()]

    def batch(self) -> torch.Tensor:
        return self.plan.batch(self.steps, self.dtype)

    def pick(self, number: int) -> fxgraft.Seed:
        return list(self.manager.seeds.values())[number % len(self.manager.seeds)]

    def slot(self, number: int) -> str:
        return list(self.host.slots)[number % len(self.host.slots)]

    @rule(number=NUMBERS, seed=st.sampled_from(SAFE), mode=st.sampled_from(["residual", "convex"]))
    def germinate(self, number: int, seed: str, mode: str) -> None:
        germinated = self.manager.germinate(self.slot(number), FITTING[seed], mode=mode)
        assert germinated.stage is Stage.TRAINING

    @rule(number=NUMBERS, value=st.sampled_from(["inf", "nan", "negative zero"]))
    def germinate_poison(self, number: int, value: str) -> None:
        seed = self.manager.germinate(self.slot(number), FITTING[value])
        self.compare_with_the_plain_model()
        self.manager.cull(seed)

    @rule(number=NUMBERS, kind=st.sampled_from(["shape", "raises"]))
    def germinate_in_vain(self, number: int, kind: str) -> None:
        before = snapshot(self.host, self.batch(), [self.optimizer])
        bad = nn.Flatten(0) if kind == "shape" else (lambda slot: nn.Linear(4, "width"))
        if kind == "shape" and len(self.host.slots[self.slot(number)].shape) == 1:
            bad = nn.Unflatten(0, (1, -1))
        with pytest.raises(BlueprintError):
            self.manager.germinate(self.slot(number), bad)
        assert_same_bits(snapshot(self.host, self.batch(), [self.optimizer]), before, "the host")

    @precondition(lambda self: self.manager.seeds)
    @rule(number=NUMBERS, to=st.sampled_from([0.0, 0.3, 1.0]), steps=st.integers(1, 3))
    def blend(self, number: int, to: float, steps: int) -> None:
        seed = self.pick(number)
        if "blend" in LEGAL[seed.stage]:
            self.manager.blend(seed, to=to, steps=steps)
            assert seed.stage is Stage.BLENDING
        else:
            self.refused("blend", seed)

    @precondition(lambda self: self.manager.seeds)
    @rule(number=NUMBERS, action=st.sampled_from(["cull", "fossilize"]))
    def finish(self, number: int, action: str) -> None:
        seed = self.pick(number)
        if action in LEGAL[seed.stage]:
            getattr(self.manager, action)(seed)
            assert seed.stage is (Stage.CULLED if action == "cull" else Stage.FOSSILIZED)
        else:
            self.refused(action, seed)

    def refused(self, action: str, seed: fxgraft.Seed) -> None:
        before = snapshot(self.host, self.batch(), [self.optimizer])
        with pytest.raises(StageError):
            getattr(self.manager, action)(seed)
        assert_same_bits(snapshot(self.host, self.batch(), [self.optimizer]), before, "the host")

    @rule()
    def train_one_step(self) -> None:
        self.optimizer.zero_grad()
        torch.manual_seed(self.steps)
        loss_of(self.host(self.batch())).backward()
        self.optimizer.step()
        self.manager.step()
        self.steps += 1

    @rule(mode=st.booleans())
    def set_mode(self, mode: bool) -> None:
        self.host.train(mode)
        self.plain.train(mode)

    @rule()
    def convert(self) -> None:
        self.dtype = torch.float64
        self.host.to(torch.float64)
        self.plain.to(torch.float64)
        # Moments keep the dtype that they were made in: start them anew, as after any conversion.
        self.optimizer.state.clear()

    @rule()
    def copy_the_host(self) -> None:
        twin = copy.deepcopy(self.host)
        call = observed_call(self.host, self.batch())
        assert_same_bits(observed_call(twin, self.batch()), call, "the copy")

    @invariant()
    def compare_with_the_plain_model(self) -> None:
        """While no seed takes part the host is the model; and without seeds its code is as at first."""
        seeds = self.manager.seeds.values()
        if not seeds:
            assert self.all_code() == self.code
        if all(seed.stage is Stage.TRAINING for seed in seeds):
            own = {n: t for n, t in self.host.state_dict().items() if not n.startswith("_seeds.")}
            self.plain.load_state_dict(own)
            actual, expected = observed_call(self.host, self.batch()), observed_call(self.plain, self.batch())
            assert_same_bits(actual, expected, "host and model")

    @invariant()
    def each_parameter_has_one_place(self) -> None:
        placed = [id(p) for group in self.optimizer.param_groups for p in group["params"]]
        owned = [*self.host.host_parameters(), *self.manager.seed_parameters()]
        assert sorted(placed) == sorted(id(p) for p in owned)
        assert {id(p) for p in self.optimizer.state} <= set(placed)


TestLives = Lives.TestCase


@settings(max_examples=max(6, settings().max_examples // 2))
@given(plans(), lifecycle_calls())
def test_culling_everything_at_any_time_gives_the_model_back(plan: Plan, calls: list) -> None:
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    before = snapshot(host, plan.batch(1))
    for call, number in calls:
        live = [seed for seed in manager.seeds.values() if seed.is_live]
        seed = live[number % len(live)] if live else None
        if call == "germinate":
            slot = list(host.slots)[number % len(host.slots)]
            manager.germinate(slot, FITTING[list(FITTING)[number % len(FITTING)]])
        elif call == "blend" and seed:
            manager.blend(seed, to=(number % 5) / 4, steps=1 + number % 3)
        elif call == "cull" and seed:
            manager.cull(seed)
        elif call in ("train", "eval"):
            getattr(host, call)()
        else:
            manager.step()
    for name in list(manager.seeds):
        manager.cull(name)
    host.train()
    assert_same_bits(snapshot(host, plan.batch(1)), before, "the host")
