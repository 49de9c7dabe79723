"""A germination that fails changes nothing, says what was wrong, and leaves the slot usable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.errors import BlueprintError, SlotError, StageError
from tests.harness import assert_same_bits, snapshot
from tests.lifecycle.test_cull_properties import trained
from tests.seed_modules import Scale
from tests.strategies import WIDTH, Plan, plans

PLAN = Plan(("linear", "in_place_module", "integers", "dead", "pair", "dropout_module"))
SLOT = "body.linear0"


class Returns(nn.Module):
    """Calls a function on its input."""

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x * self.weight if self.function is not torch.relu_ else x)


def raising(error: BaseException) -> Callable[[Any], Any]:
    def build(slot: fxgraft.Slot) -> nn.Module:
        torch.randn(3)  # a constructor that got half way
        raise error

    return build


def raise_in_forward(x: Tensor) -> Tensor:
    raise RuntimeError("boom")


def not_finite(value: float) -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        layer.weight[0, 0] = value
    return layer


# name -> (blueprint made from the host, what the message has to say)
BAD: dict[str, tuple[Callable[[fxgraft.Host], Any], list[str]]] = {
    "wrong shape": (lambda host: nn.Linear(WIDTH, 7), ["(3, 4)", "(3, 7)"]),
    "wrong input width": (lambda host: nn.Linear(9, WIDTH), ["(3, 4)", "RuntimeError"]),
    "tuple output": (lambda host: Returns(lambda x: (x, x)), ["tuple", "(3, 4)"]),
    "integer output": (lambda host: Returns(lambda x: x.long()), ["int64", "float32"]),
    "no output": (lambda host: Returns(lambda x: None), ["NoneType"]),
    "raising constructor": (lambda host: raising(ValueError("no luck")), ["ValueError", "no luck"]),
    "out of memory": (lambda host: raising(torch.OutOfMemoryError("all gone")), ["all gone"]),
    "memory error": (lambda host: raising(MemoryError("all gone")), ["all gone"]),
    "raising forward": (lambda host: Returns(raise_in_forward), ["boom"]),
    "no module": (lambda host: lambda slot: 3, ["nn.Module", "int"]),
    "nothing callable": (lambda host: 3, ["int"]),
    "unknown name": (lambda host: "low_rnak", ["low_rank"]),
    "NaN weights": (lambda host: not_finite(float("nan")), ["weight", "finite"]),
    "inf weights": (lambda host: not_finite(float("inf")), ["weight", "finite"]),
    "a module of the host": (lambda host: host.body.linear0, ["weight", "host"]),
    "a region of the host": (lambda host: host.body, ["belongs to the host"]),
    "a weight of the host": (lambda host: _sharing(host), ["weight", "host"]),
    "writes its input": (lambda host: Returns(torch.relu_), ["input"]),
    "draws globally": (lambda host: Returns(lambda x: F.dropout(x, 0.5)), ["random", "nn.Dropout"]),
    "draws globally, rand": (lambda host: Returns(lambda x: x + torch.rand(4)), ["random"]),
}


def _sharing(host: fxgraft.Host) -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight = host.body.linear0.weight
    return layer


def assert_unchanged_by(call: Callable[[], Any], world: tuple, error: type[BaseException]) -> str:
    host, optimizer, scheduler, manager = world
    before = snapshot(host, PLAN.batch(9), [optimizer], [scheduler])
    seeds = dict(manager.seeds)
    stages = {name: (seed.stage, seed.alpha, seed.target) for name, seed in seeds.items()}
    with pytest.raises(error) as caught:
        call()
    assert_same_bits(snapshot(host, PLAN.batch(9), [optimizer], [scheduler]), before, "the host")
    assert list(manager.seeds.items()) == list(seeds.items())
    assert {n: (s.stage, s.alpha, s.target) for n, s in manager.seeds.items()} == stages
    return str(caught.value)


def assert_usable(world: tuple, slot: str = SLOT) -> None:
    _, _, _, manager = world
    seed = manager.germinate(slot, Scale())
    assert seed.stage is fxgraft.Stage.TRAINING
    manager.cull(seed)


@pytest.mark.parametrize("beside_another", [False, True], ids=["alone", "beside another"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_blueprint_changes_nothing(case: str, beside_another: bool) -> None:
    make, says = BAD[case]
    world = trained(PLAN)
    host, _, _, manager = world
    if beside_another:
        manager.germinate(SLOT, Scale(), name="other")
    blueprint = make(host)
    message = assert_unchanged_by(lambda: manager.germinate(SLOT, blueprint), world, BlueprintError)
    for words in says:
        assert words in message
    if case != "unknown name":
        assert SLOT in message
    assert_usable(world)


@pytest.mark.parametrize("case", ["draws globally", "writes its input", "raising forward"])
def test_a_refused_module_keeps_its_own_state(case: str) -> None:
    world = trained(PLAN)
    module = BAD[case][0](world[0])
    module.eval().double().drop = nn.Dropout()
    before = (module.weight.clone(), module.drop)
    with pytest.raises(BlueprintError):
        world[3].germinate(SLOT, module)
    assert_same_bits((module.weight, module.drop), before)
    assert module.drop is before[1]
    assert not module.training


def test_an_interrupted_constructor_changes_nothing() -> None:
    world = trained(PLAN)
    build = raising(KeyboardInterrupt())
    assert_unchanged_by(lambda: world[3].germinate(SLOT, build), world, KeyboardInterrupt)
    assert_usable(world)


@pytest.mark.parametrize(
    ("slot", "says"),
    [
        ("body.linaer0", ["body.linaer0", "body.linear0"]),
        ("nonsense", ["nonsense", "did you mean"]),
        ("body.argmax", ["int64"]),
        ("body.pair4", ["tuple"]),
        ("body.relu", ["dead branch"]),
    ],
)
def test_a_slot_that_is_none_is_refused_with_a_reason(slot: str, says: list[str]) -> None:
    world = trained(PLAN)
    message = assert_unchanged_by(lambda: world[3].germinate(slot, Scale()), world, SlotError)
    for words in says:
        assert words in message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "convexx"}, "convex"),
        ({"objective": "trsut"}, "trust"),
        ({"name": "a.b"}, "a.b"),
        ({"name": "train"}, "train"),
        ({"name": ""}, "name"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, says: str) -> None:
    world = trained(PLAN)
    call = lambda: world[3].germinate(SLOT, Scale(), **options)  # noqa: E731
    assert says in assert_unchanged_by(call, world, ValueError)
    assert_usable(world)


def test_a_taken_name_is_refused() -> None:
    world = trained(PLAN)
    world[3].germinate(SLOT, Scale(), name="a")
    call = lambda: world[3].germinate("stem", Scale(), name="a")  # noqa: E731
    assert "'a'" in assert_unchanged_by(call, world, StageError)


def test_a_module_cannot_be_two_seeds() -> None:
    world = trained(PLAN)
    module = Scale()
    world[3].germinate(SLOT, module, name="a")
    call = lambda: world[3].germinate("stem", module, name="b")  # noqa: E731
    assert "'a'" in assert_unchanged_by(call, world, BlueprintError)


@given(plans(), st.integers(0, 60), st.sampled_from(["wrong", "raising", "nan"]))
def test_failures_on_random_hosts_change_nothing(plan: Plan, number: int, kind: str) -> None:
    host, optimizer, scheduler, manager = trained(plan)
    slot = list(host.slots)[number % len(host.slots)]
    module = {
        "wrong": Returns(lambda x: x.unsqueeze(0)),
        "raising": Returns(raise_in_forward),
        "nan": Scale(float("nan")),
    }[kind]
    before = snapshot(host, plan.batch(9), [optimizer], [scheduler])
    with pytest.raises(BlueprintError, match="slot"):
        manager.germinate(slot, module)
    assert_same_bits(snapshot(host, plan.batch(9), [optimizer], [scheduler]), before, "the host")
    assert manager.germinate(slot, Scale()).stage is fxgraft.Stage.TRAINING
