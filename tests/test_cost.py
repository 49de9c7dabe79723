"""What a measurement of a model's cost compares, and that the model does not feel it."""

from __future__ import annotations

import copy
import json
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager
from fxgraft import cost as module
from fxgraft.cost import AGAIN, BARE, BLENDING, EMPTY, TRAINING, Measurement
from fxgraft.errors import BlueprintError, SlotError
from fxgraft.util.interleaved_timing import Contender, compare, time_interleaved
from tests.harness import assert_same_bits
from tests.networks import NormNet

X = torch.randn(3, 6)
QUICK: dict[str, Any] = {"rounds": 2, "steps": 1}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 2))


def test_every_side_is_measured_and_the_model_stays_as_it_is() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    cost = Measurement(model, (X,), **QUICK).run()
    assert [side.name for side in cost.steps] == [BARE, AGAIN, EMPTY, TRAINING, BLENDING]
    assert all(side.ms > 0 and side.low <= side.ratio <= side.high for side in cost.steps)
    assert (cost.steps[0].ratio, cost.steps[0].low, cost.steps[0].high) == (1, 1, 1)
    assert_same_bits(dict(model.state_dict()), dict(before), "the model")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (cost.first_step_s, cost.recompiles) == ({}, 0)
    assert json.loads(json.dumps(cost.to_dict()))["steps"][0]["name"] == BARE


def test_the_sides_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses, to the bit: bare, in a host, and in a host with a seed that is isolated."""
    losses: dict[int, list[float]] = {}
    plain_step = Contender.step

    def step(self: Contender) -> float:
        losses.setdefault(id(self), []).append(plain_step(self))
        return losses[id(self)][-1]

    monkeypatch.setattr(Contender, "step", step)
    Measurement(net().eval(), (X,), **QUICK).run()
    bare, again, empty, training, blending = losses.values()
    count = len(again)
    assert count > 5
    assert len(set(bare)) > 5, "it trains"
    assert bare[:count] == again[:count] == empty[:count] == training[:count]
    assert blending[:count] != bare[:count]


def test_an_isolated_seed_is_in_training_and_the_other_blends(monkeypatch: pytest.MonkeyPatch) -> None:
    managers: list[fxgraft.SeedManager] = []
    made = module.SeedManager

    def keep(*args: Any, **options: Any) -> fxgraft.SeedManager:
        managers.append(made(*args, **options))
        return managers[-1]

    monkeypatch.setattr(module, "SeedManager", keep)
    Measurement(net(), (X,), slot="1", **QUICK).run()
    stages = [seed.stage.name for manager in managers for seed in manager.seeds.values()]
    assert stages == ["TRAINING", "BLENDING"]
    assert managers[-1].steps > 4, "it is stepped"


def test_compiled_sides_and_what_they_compile(fresh_compiler: None) -> None:
    cost = Measurement(net(), (X,), slot="1", backend="aot_eager", **QUICK).run()
    assert list(cost.first_step_s) == [BARE, "host", "germination, and a step"]
    assert min(cost.first_step_s.values()) > 0.005, "each compiles something"
    assert cost.recompiles == 0


def test_a_compiled_side_may_have_no_length() -> None:
    """Which a `nn.Sequential` has, and most models have not."""
    model = NormNet()
    compiled = torch.compile(model, backend="eager")
    assert Contender(model, (torch.ones(2, 6),), {}, compiled)._call is compiled


def middle(measurement: Measurement) -> str:
    return measurement._middle(SeedManager(measurement._host()))


@pytest.mark.parametrize(("blueprint", "expected"), [("mlp", "2"), ("low_rank", "2")])
def test_without_a_slot_it_is_near_the_middle(blueprint: str, expected: str) -> None:
    assert middle(Measurement(net(), (X,), blueprint=blueprint)) == expected


def test_the_middle_skips_what_does_not_take_the_seed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    assert middle(Measurement(model, (torch.randn(2, 1, 4, 4),), blueprint="conv_bottleneck")) == "0"


class NoGradient(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1)


DEAF = nn.Sequential(nn.Linear(6, 4), NoGradient())


@pytest.mark.parametrize(
    ("measurement", "error", "says"),
    [
        (Measurement(net(), (X,), rounds=0), ValueError, "rounds: expected a positive whole number"),
        (Measurement(net(), (X,), steps=0), ValueError, "steps: expected a positive whole number"),
        (Measurement(net(), (X,), slot="nowhere"), SlotError, "nowhere"),
        (Measurement(net(), (X,), slot="1", blueprint="none"), BlueprintError, "none"),
        (Measurement(net(), (X,), blueprint="conv_bottleneck"), ValueError, "none of 5 slots takes"),
        (Measurement(DEAF, (X,), slot="0"), ValueError, "takes a gradient"),
    ],
    ids=["rounds", "steps", "slot", "blueprint", "fits nowhere", "no gradient"],
)
def test_what_cannot_be_measured_is_reported(
    measurement: Measurement, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        measurement.run()


def test_ratios_are_taken_within_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down slows both sides: the ratio stays."""
    clock = [0.0]
    factors = iter([1.0, 10.0, 100.0])
    speed = {"a": 1.0, "b": 2.0}

    def slower(order: list[str]) -> None:
        factor = next(factors)
        speed.update(a=factor, b=2 * factor)

    def step(name: str) -> None:
        clock[0] += speed[name]

    monkeypatch.setattr("fxgraft.util.interleaved_timing.time.perf_counter", lambda: clock[0])
    sides = {name: partial(step, name) for name in "ab"}
    first, second = compare(time_interleaved(sides, 3, 2, slower))
    assert (first.ms, second.ratio, second.low, second.high) == (10_000, 2.0, 2.0, 2.0)
