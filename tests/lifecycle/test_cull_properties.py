"""cull after germinate is the identity, and what was culled is gone from memory."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fxgraft
from tests.harness import (
    are_collected,
    assert_same_bits,
    counting_backend,
    loss_of,
    observed_call,
    snapshot,
    train,
)
from tests.lifecycle.test_isolation_properties import OPTIMIZERS, SEEDS, germinate_all
from tests.seed_modules import FITTING, Scale
from tests.strategies import Plan, plans

STAGES = ("TRAINING", "BLENDING", "HOLDING")


def trained(plan: Plan, steps: int = 2) -> tuple:
    """A host in mid-training with an optimizer, a scheduler and a manager."""
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    optimizer = OPTIMIZERS["adamw"](host.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=50)
    manager = fxgraft.SeedManager(host, optimizer, schedulers=[scheduler])
    train(host, optimizer, [plan.batch(i) for i in range(steps)], lambda i: scheduler.step())
    optimizer.zero_grad()
    return host, optimizer, scheduler, manager


def bring_to(manager: fxgraft.SeedManager, name: str, stage: str) -> None:
    if stage != "TRAINING":
        manager.blend(name, to=0.75, steps=2)
        manager.step()
        if stage == "HOLDING":
            manager.step()
    assert manager.seeds[name].stage is fxgraft.Stage[stage]


def run_seeds(host: fxgraft.Host, plan: Plan, times: int = 2) -> None:
    """Forward and backward with the seeds in, without a trace on the host."""
    for i in range(times):
        observed_call(host, plan.batch(i))


@given(plans(), SEEDS, st.sampled_from(STAGES), st.randoms(use_true_random=False))
def test_cull_undoes_germinate(plan: Plan, wanted: list, stage: str, random) -> None:
    host, optimizer, scheduler, manager = trained(plan)
    before = snapshot(host, plan.batch(9), [optimizer], [scheduler])
    germinate_all(host, manager, wanted)
    names = list(manager.seeds)
    random.shuffle(names)
    bring_to(manager, names[0], stage)
    run_seeds(host, plan)
    gone = [weakref.ref(manager.seeds[name].module) for name in names]
    for name in names:
        manager.cull(name)
    assert_same_bits(snapshot(host, plan.batch(9), [optimizer], [scheduler]), before, "the host")
    assert not list(manager.seed_parameters())
    assert are_collected(gone)


@given(plans(), SEEDS)
def test_cull_removes_optimizer_state(plan: Plan, wanted: list) -> None:
    """A seed that was trained has moments; the host's moments stay and its own go."""
    host, optimizer, _, manager = trained(plan)
    germinate_all(host, manager, wanted)
    theirs = [weakref.ref(p) for p in manager.seed_parameters()]
    train(host, optimizer, [plan.batch(0)])
    optimizer.zero_grad()
    ours = {id(p) for p in host.host_parameters()}
    for name in list(manager.seeds):
        manager.cull(name)
    assert {id(p) for p in optimizer.state} <= ours
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == ours
    assert are_collected(theirs)


@given(plans(), SEEDS, st.data())
def test_culling_some_leaves_the_others(plan: Plan, wanted: list, data: st.DataObject) -> None:
    """The host is as if the culled seeds had never been: the same code as with the rest alone."""
    host, _, _, manager = trained(plan)
    germinate_all(host, manager, wanted)
    names = list(manager.seeds)
    culled = data.draw(st.lists(st.sampled_from(names), unique=True))
    for name in culled:
        manager.cull(name)

    other = fxgraft.trace(plan.build(), (plan.batch(0),))
    rest = fxgraft.SeedManager(other)
    for name, (number, seed, mode, objective) in zip(names, wanted, strict=True):
        if name not in culled:
            slot = list(other.slots)[number % len(other.slots)]
            rest.germinate(slot, FITTING[seed], name=name, mode=mode, objective=objective)
    assert [r.code for r in host.regions.values()] == [r.code for r in other.regions.values()]
    assert sorted(manager.seeds) == sorted(rest.seeds)
    run_seeds(host, plan, 1)


@pytest.mark.parametrize("stage", STAGES)
def test_a_cull_at_one_slot_leaves_its_neighbours_running(stage: str) -> None:
    plan = Plan(("linear",))
    host, _, _, manager = trained(plan)
    for name in "abc":
        manager.germinate("body.linear0", Scale(), name=name)
        bring_to(manager, name, stage)
    modules = {name: manager.seeds[name].module for name in "bc"}
    alpha = manager.seeds["b"].alpha
    manager.cull("a")
    assert list(manager.seeds) == ["b", "c"]
    assert all(manager.seeds[name].module is modules[name] for name in "bc")
    assert manager.seeds["b"].alpha == alpha
    h = host.body.linear0(host.stem(plan.batch(1)))
    for name in "bc":
        share = torch.tensor(manager.seeds[name].alpha)
        h = torch.where(share == 0, h, h + share * modules[name](h))
    assert_same_bits(host(plan.batch(1)), host.head(h), "output")
    loss_of(host(plan.batch(1))).backward()
    assert all(p.grad is not None for p in manager.seed_parameters())


@pytest.mark.usefixtures("fresh_compiler")
def test_a_culled_module_is_collected_after_compiling() -> None:
    plan = Plan(("linear",))
    host, optimizer, _, manager = trained(plan)
    host.compile(backend=counting_backend())
    before = snapshot(host, plan.batch(9), [optimizer])
    manager.germinate("body.linear0", Scale(), name="a")
    gone = weakref.ref(manager.seeds["a"].module)
    weights = [weakref.ref(p) for p in manager.seed_parameters()]
    train(host, optimizer, [plan.batch(0)])
    bring_to(manager, "a", "BLENDING")
    loss_of(host(plan.batch(1))).backward()
    optimizer.zero_grad()
    manager.cull("a")
    assert are_collected([gone, *weights])
    after = snapshot(host, plan.batch(9), [optimizer])
    for part in ("graphs", "code", "installed", "parameters", "modules", "hooks", "parameter hooks"):
        assert_same_bits(after[part], before[part], part)


def test_the_seed_record_of_a_culled_seed_holds_nothing() -> None:
    plan = Plan(("linear",))
    manager = trained(plan)[3]
    seed = manager.germinate("body.linear0", Scale())
    manager.cull(seed)
    assert (seed.stage, seed.module, seed.alpha) == (fxgraft.Stage.CULLED, None, 0.0)


def test_a_host_is_unchanged_by_a_hundred_lives() -> None:
    plan = Plan(("linear", "batch_norm"))
    host, optimizer, scheduler, manager = trained(plan)
    before = snapshot(host, plan.batch(9), [optimizer], [scheduler])
    template = Scale()
    for i in range(100):
        seed = manager.germinate("body.norm1", copy.deepcopy(template), mode=("residual", "convex")[i % 2])
        if i % 3:
            manager.blend(seed, steps=1)
            manager.step()
        manager.cull(seed)
    assert_same_bits(snapshot(host, plan.batch(9), [optimizer], [scheduler]), before, "the host")
