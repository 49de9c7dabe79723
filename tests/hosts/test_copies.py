"""deepcopy, pickle, state_dict, conversion: a host with seeds is a module like any other."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fxgraft
from tests.harness import assert_same_bits, frozen, loss_of, observed_call, train
from tests.lifecycle.test_cull_properties import bring_to
from tests.lifecycle.test_isolation_properties import SEEDS, germinate_all
from tests.seed_modules import FITTING, Drawing, Scale
from tests.strategies import Plan, plans

PLAN = Plan(("linear", "batch_norm", "dropout"))
STAGES = ("TRAINING", "BLENDING", "HOLDING")


def saved_and_loaded(host: fxgraft.Host) -> fxgraft.Host:
    buffer = io.BytesIO()
    torch.save(host, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[fxgraft.Host], fxgraft.Host]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda host: pickle.loads(pickle.dumps(host)),
    "torch.save": saved_and_loaded,
}


def all_state(host: fxgraft.Host) -> dict:
    return frozen(dict(host.state_dict()))


@given(plans(), SEEDS, st.sampled_from(STAGES), st.sampled_from(list(COPIES)), st.booleans())
def test_a_copy_computes_what_the_original_does(
    plan: Plan, wanted: list, stage: str, how: str, training: bool
) -> None:
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    germinate_all(host, manager, [(n, "drawing" if s == "nan" else s, m, o) for n, s, m, o in wanted])
    bring_to(manager, next(iter(manager.seeds)), stage)
    host.train(training)
    twin = COPIES[how](host)
    assert_same_bits(all_state(twin), all_state(host), "state")
    assert list(twin.slots) == list(host.slots)
    assert [r.code for r in twin.regions.values()] == [r.code for r in host.regions.values()]
    assert_same_bits(observed_call(twin, plan.batch(1)), observed_call(host, plan.batch(1)), "call")
    ours, theirs = {id(t) for t in host.state_dict(keep_vars=True).values()}, twin.state_dict(keep_vars=True)
    assert not ours & {id(t) for t in theirs.values()}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_and_its_original_go_their_own_ways(how: str) -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    manager = fxgraft.SeedManager(host)
    manager.germinate("body.linear0", Scale(), name="a")
    bring_to(manager, "a", "BLENDING")
    before = all_state(host), observed_call(host, PLAN.batch(1))
    twin = COPIES[how](host)
    train(twin, torch.optim.SGD(twin.parameters(), 0.1), [PLAN.batch(i) for i in range(3)])
    twin.double()
    assert_same_bits((all_state(host), observed_call(host, PLAN.batch(1))), before, "the original")
    expected = all_state(twin), observed_call(twin, PLAN.batch(1, torch.float64))
    manager.cull("a")
    host.half()
    assert_same_bits(
        (all_state(twin), observed_call(twin, PLAN.batch(1, torch.float64))), expected, "the copy"
    )


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_host_can_be_grown_by_a_manager_of_its_own(how: str) -> None:
    twin = COPIES[how](fxgraft.trace(PLAN.build(), (PLAN.batch(0),)))
    plain = PLAN.build()
    manager = fxgraft.SeedManager(twin, torch.optim.SGD(twin.parameters(), 0.1))
    manager.germinate("body.linear0", Scale(), name="a")
    assert_same_bits(observed_call(twin, PLAN.batch(1)), observed_call(plain, PLAN.batch(1)), "call")
    manager.blend("a", steps=1)
    manager.step()
    twin.eval()
    h = twin.body.linear0(twin.stem(PLAN.batch(1)))
    h = twin.head(twin.body.norm1(h + (0.5 * h + 0.25)))
    assert_same_bits(twin(PLAN.batch(1)), h, "output")


@given(plans(), st.integers(0, 60), st.sampled_from(STAGES))
def test_state_dict_round_trip(plan: Plan, number: int, stage: str) -> None:
    def grown(weight: float) -> fxgraft.Host:
        host = fxgraft.trace(plan.build(), (plan.batch(0),))
        manager = fxgraft.SeedManager(host)
        manager.germinate(list(host.slots)[number % len(host.slots)], Scale(weight), name="a")
        bring_to(manager, "a", stage)
        return host

    source, target = grown(0.5), grown(0.75)
    train(source, torch.optim.SGD(source.parameters(), 0.1), [plan.batch(0)])
    names = list(plan.build().state_dict())
    keys = list(source.state_dict())
    assert keys[: len(names)] == names
    assert all(key.startswith("_seeds.a.") for key in keys[len(names) :])
    assert target.load_state_dict(source.state_dict()).missing_keys == []
    assert_same_bits(observed_call(target, plan.batch(1)), observed_call(source, plan.batch(1)), "call")


def test_load_state_dict_assign() -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    manager = fxgraft.SeedManager(host)
    manager.germinate("body.linear0", Scale(), name="a")
    bring_to(manager, "a", "BLENDING")
    state = {name: tensor.clone() + 1 for name, tensor in host.state_dict().items()}
    state["_seeds.a.learning"] = torch.tensor(False)
    state["_seeds.a.released"] = torch.tensor(False)
    host.load_state_dict(state, assign=True)
    weight = host.body.linear0.weight
    assert_same_bits(weight, nn_parameter(state["body.linear0.weight"]), "weight")
    loss_of(host(PLAN.batch(1))).backward()
    assert weight.grad is not None
    assert host.graft("a").module.weight.grad is not None


def nn_parameter(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nn.Parameter(tensor)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mode", ["residual", "convex"])
def test_conversion_in_mid_life(stage: str, mode: str) -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    manager = fxgraft.SeedManager(host)
    manager.germinate("body.linear0", Scale(), name="a", mode=mode)
    bring_to(manager, "a", stage)
    host.double().eval()
    alpha = manager.seeds["a"].alpha
    assert {p.dtype for p in host.parameters()} == {torch.float64}
    h = host.body.linear0(host.stem(PLAN.batch(1, torch.float64)))
    s = 0.5 * h + 0.25
    blended = h + alpha * s if mode == "residual" else h + alpha * (s - h)
    out = host(PLAN.batch(1, torch.float64))
    torch.testing.assert_close(out, host.head(host.body.norm1(blended if alpha else h)))
    loss_of(out).backward()
    manager.blend("a", to=1.0, steps=3)
    for _ in range(3):
        manager.step()
        host(PLAN.batch(1, torch.float64))
    assert manager.seeds["a"].alpha == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_a_seed_follows_its_slot(dtype: torch.dtype, training: bool) -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),)).to(dtype).train(training)
    manager = fxgraft.SeedManager(host)
    module = manager.germinate("body.linear0", lambda slot: Drawing(), name="a").module
    assert module.weight.dtype is dtype
    assert module.drop.training is training
    host.train(not training)
    assert module.drop.training is not training
    manager.blend("a", to=0.3, steps=1)
    manager.step()
    out = host(PLAN.batch(1).to(dtype))
    assert out.dtype is dtype
    loss_of(out).backward()
    assert module.weight.grad.dtype is dtype


@pytest.mark.parametrize("seed", ["scale", "drawing"])
@pytest.mark.parametrize("stage", STAGES)
def test_autocast(stage: str, seed: str) -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    plain = PLAN.build()
    manager = fxgraft.SeedManager(host)
    manager.germinate("body.linear0", torch.nn.Linear(4, 4), name="a")
    manager.germinate("head.1", FITTING[seed], name="b")
    bring_to(manager, "a", stage)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = observed_call(host, PLAN.batch(1)), observed_call(plain, PLAN.batch(1))
    if stage == "TRAINING":
        assert_same_bits(ours, theirs, "call")
    assert ours["output"].dtype is theirs["output"].dtype
    loss_of(host(PLAN.batch(1))).backward()
    assert all(p.dtype is torch.float32 for p in manager.seed_parameters())
