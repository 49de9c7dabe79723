"""Several hosts under one accelerator: each state carries what grew, or reading it says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft.errors import CheckpointError
from fxgraft.integrations.accelerate import Growth
from tests.harness import assert_same_bits, frozen

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:accelerate")

X = torch.randn(30, 4, 6, generator=torch.Generator().manual_seed(1))


class World:
    """Two hosts and a plain model beside them, prepared in an order, with Growths made in an order."""

    def __init__(
        self, prepared: tuple[str, ...] = ("one", "plain", "two"), growths: tuple[str, ...] = ("one", "two")
    ):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        self.accelerator = Accelerator(cpu=True)
        self.models: dict[str, Any] = {}
        self.optimizers: dict[str, Any] = {}
        self.schedulers: dict[str, Any] = {}
        for i, name in enumerate(("one", "two", "plain")):
            torch.manual_seed(i)
            model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
            self.models[name] = model if name == "plain" else fxgraft.trace(model, (X[0],))
        for name in prepared:
            optimizer = torch.optim.AdamW(self.models[name].parameters(), 1e-2)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
            self.models[name], self.optimizers[name], self.schedulers[name] = self.accelerator.prepare(
                self.models[name], optimizer, scheduler
            )
        self.growths = {
            name: Growth(self.accelerator, self.models[name], self.optimizers[name], [self.schedulers[name]])
            for name in growths
        }

    def train(self, batches: range, plans: dict[str, Any]) -> None:
        for i in batches:
            out = X[i]
            for model in self.models.values():
                out = model(out)
            self.accelerator.backward(out.square().mean())
            for optimizer in self.optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
            for scheduler in self.schedulers.values():
                scheduler.step()
            for name, growth in self.growths.items():
                growth.step()
                act(growth.manager, i, plans.get(name, ()))

    def tensors(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in sorted(self.models):
            model, optimizer = self.models[name], self.optimizers[name].optimizer
            found |= {f"{name}.{key}": value for key, value in sorted(model.state_dict().items())}
            names = {parameter: key for key, parameter in model.named_parameters()}
            states = sorted((names[p], state) for p, state in optimizer.state.items())
            found |= {f"{name}.{n}.{key}": value for n, state in states for key, value in state.items()}
        return frozen(found)

    def lives(self) -> list[Any]:
        managers = [self.growths[name].manager for name in sorted(self.growths)]
        return [[(s.name, s.stage, s.alpha, s.trained_steps) for s in m.seeds.values()] for m in managers]


def act(manager: fxgraft.SeedManager, step: int, plan: Any) -> None:
    for i, (born, slot, blueprint, hyper) in enumerate(plan):
        name = f"s{i}"
        if step == born:
            manager.germinate(slot, blueprint, name=name, hyper={"lr": 0.05} if hyper else None)
        if step == born + 2:
            manager.blend(name, to=0.5, steps=2)
        if step == born + 5:
            (manager.cull if i == 1 else manager.fossilize)(name)


PLANS = {
    "one": [(1, "1", "mlp", False), (2, "1", "low_rank", True)],
    "two": [(0, "2", "low_rank", True), (3, "1", "mlp", False), (4, "1", "mlp", False)],
}


@pytest.mark.parametrize("at", [4, 9])
def test_several_hosts_go_on_bit_for_bit(at: int, tmp_path: Path) -> None:
    whole = World()
    whole.train(range(at), PLANS)
    whole.accelerator.save_state(str(tmp_path))
    assert (tmp_path / "fxgraft.safetensors").exists()
    assert (tmp_path / "fxgraft_2.safetensors").exists()
    whole.train(range(at, 14), PLANS)
    resumed = World(growths=("two", "one"))
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(range(at, 14), PLANS)
    assert resumed.lives() == whole.lives()
    assert_same_bits(resumed.tensors(), whole.tensors(), "resumed and whole")


def test_a_state_is_loaded_into_the_run_that_goes_on(tmp_path: Path) -> None:
    world = World()
    world.train(range(4), PLANS)
    world.accelerator.save_state(str(tmp_path))
    before, lives = world.tensors(), world.lives()
    world.train(range(4, 14), PLANS)
    after = world.tensors()
    world.accelerator.load_state(str(tmp_path))
    assert world.lives() == lives
    assert_same_bits(world.tensors(), before, "as it was saved")
    world.train(range(4, 14), PLANS)
    assert_same_bits(world.tensors(), after, "and goes the same way again")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("growths", [(), ("one",), ("two",)])
def test_a_state_is_not_loaded_without_its_growths(
    growths: tuple[str, ...], safe: bool, strict: bool, tmp_path: Path
) -> None:
    world = World()
    world.train(range(4), PLANS)
    world.accelerator.save_state(str(tmp_path), safe_serialization=safe)
    with pytest.raises(CheckpointError, match=r"are in fxgraft(_2)?\.safetensors.*Growth\(accelerator, host"):
        World(growths=growths).accelerator.load_state(str(tmp_path), strict=strict)


def test_a_plain_model_in_the_place_of_a_host_is_refused(tmp_path: Path) -> None:
    world = World(("one",), ("one",))
    world.train(range(2), PLANS)
    world.accelerator.save_state(str(tmp_path))
    with pytest.raises(RuntimeError, match=r"are in fxgraft\.safetensors"):
        World(("plain",), ()).accelerator.load_state(str(tmp_path))


def test_a_state_without_growths_is_not_loaded_with_them(tmp_path: Path) -> None:
    World(growths=("two",)).accelerator.save_state(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"fxgraft\.safetensors: is not there"):
        World().accelerator.load_state(str(tmp_path))


def test_other_models_in_the_places_are_refused(tmp_path: Path) -> None:
    world = World()
    world.train(range(4), PLANS)
    world.accelerator.save_state(str(tmp_path))
    other = World(("plain", "one", "two"))
    with pytest.raises(CheckpointError, match=r"fxgraft_1\.safetensors: is not there"):
        other.accelerator.load_state(str(tmp_path))


def test_one_optimizer_for_two_growths_is_refused() -> None:
    world = World(growths=("one",))
    with pytest.raises(ValueError, match="another Growth has it"):
        Growth(world.accelerator, world.models["two"], [world.optimizers["two"], world.optimizers["one"]])


def test_weights_that_accelerate_writes_of_a_host_that_has_grown_are_refused(tmp_path: Path) -> None:
    from accelerate.utils import load_checkpoint_in_model

    world = World()
    world.train(range(4), PLANS)
    world.accelerator.save_model(world.models["one"], str(tmp_path))
    with pytest.raises(CheckpointError, match="which the host has not"):
        load_checkpoint_in_model(World().models["one"], str(tmp_path / "model.safetensors"))


_seeds = st.lists(
    st.tuples(
        st.integers(0, 8), st.sampled_from(["1", "2"]), st.sampled_from(["mlp", "low_rank"]), st.booleans()
    ),
    max_size=3,
)


@settings(suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture])
@given(
    prepared=st.permutations(["one", "plain", "two"]).map(tuple),
    made=st.tuples(*[st.permutations(["one", "two"]).map(tuple)] * 2),
    plans=st.fixed_dictionaries({"one": _seeds, "two": _seeds}),
    at=st.integers(1, 10),
    fresh=st.booleans(),
)
def test_any_order_of_objects_goes_on(
    prepared: Any, made: Any, plans: Any, at: int, fresh: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = str(tmp_path_factory.mktemp("any"))
    whole = World(prepared, made[0])
    whole.train(range(at), plans)
    whole.accelerator.save_state(folder)
    whole.train(range(at, 12), plans)
    expected, lives = whole.tensors(), whole.lives()
    resumed = World(prepared, made[1]) if fresh else whole
    resumed.accelerator.load_state(folder)
    resumed.train(range(at, 12), plans)
    assert resumed.lives() == lives
    assert_same_bits(resumed.tensors(), expected, "resumed and whole")
