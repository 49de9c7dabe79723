"""A host with empty slots is the model; a host with isolated seeds trains as if there were none."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxgraft
from tests.harness import OperationRecord, assert_same_bits, observed_call, train
from tests.seed_modules import FITTING, Scale
from tests.strategies import Plan, plans

SEEDS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from(list(FITTING)),
        st.sampled_from(["residual", "convex"]),
        st.sampled_from(["trust", "trust_step", "straight_through", "shadow"]),
    ),
    min_size=1,
    max_size=5,
)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "adamw foreach": lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
}


def slot_at(host: fxgraft.Host, number: int) -> str:
    return list(host.slots)[number % len(host.slots)]


def germinate_all(host: fxgraft.Host, manager: fxgraft.SeedManager, wanted: list) -> None:
    for number, seed, mode, objective in wanted:
        manager.germinate(slot_at(host, number), FITTING[seed], mode=mode, objective=objective)


@given(plans())
def test_an_empty_host_is_the_model(plan: Plan) -> None:
    model = plan.build()
    plain = copy.deepcopy(model)
    host = fxgraft.trace(model, (plan.batch(0),))
    assert not host.rejected.keys() & host.slots.keys()
    assert list(host.state_dict()) == list(plain.state_dict())
    ours, theirs = dict(host.named_parameters()), dict(model.named_parameters())
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in ours)
    for training in (True, False):
        host.train(training)
        plain.train(training)
        assert_same_bits(observed_call(host, plan.batch(1)), observed_call(plain, plan.batch(1)), "call")


@given(plans())
def test_empty_slots_run_the_operations_of_the_model(plan: Plan) -> None:
    model = plan.build()
    plain = copy.deepcopy(model)
    host = fxgraft.trace(model, (plan.batch(0),))
    with OperationRecord() as expected:
        observed_call(plain, plan.batch(1))
    with OperationRecord() as actual:
        observed_call(host, plan.batch(1))
    assert actual.names == expected.names


@given(plans(), SEEDS, st.sampled_from(list(OPTIMIZERS)))
def test_isolated_seeds_leave_the_trajectory_alone(plan: Plan, wanted: list, optimizer: str) -> None:
    batches = [plan.batch(i) for i in range(5)]
    plain = plan.build()
    expected = train(plain, OPTIMIZERS[optimizer](plain.parameters()), batches)

    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    trained_by = OPTIMIZERS[optimizer](host.parameters())
    manager = fxgraft.SeedManager(host, trained_by)

    def grow(i: int) -> None:
        manager.step()
        if i == 1:
            germinate_all(host, manager, wanted)

    train(host, trained_by, batches, grow).assert_same(expected)
    assert len(manager.seeds) == len(wanted)


@given(plans(), SEEDS)
def test_every_slot_accepts_every_fitting_seed_in_eval_mode(plan: Plan, wanted: list) -> None:
    host = fxgraft.trace(plan.build(), (plan.batch(0),)).eval()
    plain = plan.build().eval()
    germinate_all(host, fxgraft.SeedManager(host), wanted)
    assert_same_bits(observed_call(host, plan.batch(1)), observed_call(plain, plan.batch(1)), "call")


@given(plans(), SEEDS)
def test_disabled_seeds_are_plain_pytorch(plan: Plan, wanted: list) -> None:
    batches = [plan.batch(i) for i in range(4)]
    plain = plan.build()
    expected = train(plain, OPTIMIZERS["adamw"](plain.parameters()), batches)
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    trained_by = OPTIMIZERS["adamw"](host.parameters())
    manager = fxgraft.SeedManager(host, trained_by, enabled=False)

    def grow(i: int) -> None:
        germinate_all(host, manager, wanted)
        manager.step()

    train(host, trained_by, batches, grow).assert_same(expected)
    assert {seed.stage for seed in manager.seeds.values()} <= {fxgraft.Stage.DORMANT}
    assert "_seeds" not in host._modules
    assert not list(manager.seed_parameters())


@pytest.mark.usefixtures("fresh_compiler")
def test_isolated_seeds_leave_the_trajectory_alone_compiled() -> None:
    plan = Plan(("in_place_module", "batch_norm"))
    batches = [plan.batch(i) for i in range(5)]
    wanted = [
        (0, "drawing", "residual", "trust"),
        (1, "nan", "convex", "trust"),
        (3, "inf", "residual", "straight_through"),
    ]

    def run(grow: bool) -> object:
        host = fxgraft.trace(plan.build(), (plan.batch(0),))
        host.compile(backend="aot_eager")
        optimizer = OPTIMIZERS["adamw"](host.parameters())
        manager = fxgraft.SeedManager(host, optimizer)

        def after(i: int) -> None:
            manager.step()
            if grow and i == 1:
                germinate_all(host, manager, wanted)

        return train(host, optimizer, batches, after)

    run(grow=True).assert_same(run(grow=False))


@pytest.mark.inductor
@pytest.mark.usefixtures("fresh_compiler")
def test_lifecycle_under_inductor() -> None:
    """Values within torch.testing's defaults; the gradients as well, without and with an isolated seed."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    plain, x = copy.deepcopy(model), torch.randn(3, 4)
    host = fxgraft.trace(model, (x,))
    host.compile()
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 1e-2))
    for germinated in (False, True):
        if germinated:
            manager.germinate("1", Scale(), name="a")
        torch.testing.assert_close(host(x), plain(x))
        ours, theirs = observed_call(host, x)["gradients"], observed_call(plain, x)["gradients"]
        torch.testing.assert_close(ours, theirs)
    manager.blend("a", steps=1)
    manager.step()
    host(x).sum().backward()
    h = plain[1](plain[0](x))
    torch.testing.assert_close(host(x), plain[2](h + (0.5 * h + 0.25)))
    manager.fossilize("a")
    torch.testing.assert_close(host(x), plain[2](h + (0.5 * h + 0.25)))
