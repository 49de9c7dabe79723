"""Seeds with hyper-parameters of their own: their groups follow the schedules and leave without a trace."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

import fxgraft
from fxgraft.checkpoint import optimizers
from fxgraft.errors import BlueprintError, CheckpointError
from fxgraft.optimizers.groups import OWNER
from fxgraft.training.checkpoints import rewind
from tests.harness import are_collected, assert_same_bits, frozen, traced_plan, train
from tests.optimizers.test_optimizer import PLAN, SLOT, Together, split_groups
from tests.optimizers.test_schedulers import SCHEDULERS

HYPER = {"lr": 1e-3, "weight_decay": 0.5}
ALL = {
    **SCHEDULERS,
    # Without its eps: an absolute change of the lr, below which it leaves a group alone.
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, eps=0),
    "ReduceLROnPlateau, min_lr each": lambda o: lr_scheduler.ReduceLROnPlateau(
        o, patience=1, eps=0, min_lr=[1e-7, 1e-6]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=[5e-2, 4e-2], anneal_epochs=6),
    "CyclicLR, each its own": lambda o: lr_scheduler.CyclicLR(o, [1e-3, 2e-3], [1e-2, 3e-2], step_size_up=3),
    "nested": lambda o: lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.SequentialLR(
                o, [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.StepLR(o, 2)], milestones=[5]
            ),
            lr_scheduler.ExponentialLR(o, 0.9),
        ]
    ),
}
PLATEAU = [name for name in ALL if name.startswith("ReduceLROnPlateau")]


def split_by_dims(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices, flat = (group["params"] for group in split_groups(model))
    half = len(matrices) // 2
    return [
        torch.optim.Muon([{"params": matrices[:half]}, {"params": matrices[half:]}], 1e-2),
        torch.optim.AdamW([{"params": flat[:2]}, {"params": flat[2:]}], 1e-2),
    ]


KINDS: dict[str, Callable[[nn.Module], list[torch.optim.Optimizer]]] = {
    "sgd": lambda m: [torch.optim.SGD(split_groups(m), 1e-2, momentum=0.9)],
    "adamw": lambda m: [torch.optim.AdamW(split_groups(m), 1e-2)],
    "muon and adamw": split_by_dims,
}


def linear(slot: fxgraft.Slot) -> nn.Module:
    return nn.Linear(4, 4)


def scheduler_states(schedulers: list[Any]) -> list[Any]:
    return [
        copy.deepcopy({k: v for k, v in s.state_dict().items() if k != "_scale_fn_ref"}) for s in schedulers
    ]


def settings(optimizers: list[torch.optim.Optimizer]) -> list[Any]:
    return [[{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in optimizers]


class World:
    """A host in training under schedules, and what there is to compare of it."""

    def __init__(self, name: str, kind: str = "sgd", **options: Any):
        self.host = traced_plan(PLAN)
        self.optimizers = KINDS[kind](self.host)
        self.plateau = name in PLATEAU
        self.schedulers = [ALL[name](o) for o in self.optimizers] if name else []
        options.setdefault("schedulers", self.schedulers)
        self.manager = fxgraft.SeedManager(self.host, self.optimizers, **options)
        self.rates: list[Any] = []
        self.states: list[Any] = []

    def train(self, steps: int, acts: dict[int, Callable[[World], Any]] | None = None, first: int = 0) -> Any:
        def after(i: int) -> None:
            self.manager.step()
            for scheduler in self.schedulers:
                scheduler.step(*([1.0] if self.plateau else []))
            own = [[float(g["lr"]) for g in o.param_groups if OWNER not in g] for o in self.optimizers]
            self.rates.append(own)
            if acts and i in acts:
                acts[i](self)
            self.states.append((settings(self.optimizers), scheduler_states(self.schedulers)))

        batches = [PLAN.batch(first + i) for i in range(steps)]
        return train(self.host, Together(self.optimizers), batches, after)  # type: ignore[arg-type]

    def germinate(self, name: str = "a", **options: Any) -> fxgraft.Seed:
        return self.manager.germinate(SLOT, linear, name=name, **{"hyper": HYPER, **options})

    def own(self) -> list[dict[str, Any]]:
        return [g for o in self.optimizers for g in o.param_groups if OWNER in g]

    def look(self) -> Any:
        """All that must be as before after a refusal or a cull."""
        groups = [
            [dict(g, params=[id(p) for p in g["params"]]) for g in o.param_groups] for o in self.optimizers
        ]
        moments = [{id(p): frozen(v) for p, v in o.state.items()} for o in self.optimizers]
        return copy.deepcopy((groups, moments, scheduler_states(self.schedulers)))


def assert_same_look(actual: Any, expected: Any) -> None:
    assert actual[0] == expected[0]
    assert actual[2] == expected[2]
    assert_same_bits(actual[1], expected[1], "moments")


@functools.cache
def trained_plain(name: str, kind: str) -> tuple[World, Any]:
    """A run without seeds, and what it left to see: several runs with seeds are compared with it."""
    plain = World(name, kind)
    return plain, plain.train(12)


def assert_host_as_without(
    acts: dict[int, Callable[[World], Any]], gone_at: int, name: str, kind: str
) -> None:
    plain, expected = trained_plain(name, kind)
    grown = World(name, kind)
    grown.train(12, acts).assert_same(expected)
    assert grown.rates == plain.rates
    assert grown.states[gone_at:] == plain.states[gone_at:]
    assert grown.own() == []
    for ours, theirs in zip(grown.optimizers, plain.optimizers, strict=True):
        assert_same_bits(ours.state_dict()["state"], theirs.state_dict()["state"], "moments")


# In mid-schedule


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL)
def test_germinate_and_cull_in_mid_schedule(name: str, kind: str) -> None:
    """Rates, weights, moments and scheduler states are those of a run without the seed."""
    acts = {3: lambda w: w.germinate(), 8: lambda w: w.manager.cull("a")}
    assert_host_as_without(acts, 8, name, kind)


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("name", ALL)
def test_two_seeds_culled_in_either_order(name: str, order: str) -> None:
    """The group in the middle goes, and the lists stay with their groups."""
    ratios: list[Any] = []
    plateau_lrs: dict[str, float] = {}

    def grow(w: World, seed: str) -> None:
        plateau_lrs[seed] = w.optimizers[0].param_groups[0]["lr"]
        w.germinate(seed, hyper=hypers[seed])

    def cull_first(w: World) -> None:
        before = {g[OWNER]: (g["lr"], g["weight_decay"]) for g in w.own()}
        w.manager.cull(order[0])
        assert {g[OWNER]: (g["lr"], g["weight_decay"]) for g in w.own()} == {order[1]: before[order[1]]}

    def look(w: World) -> None:
        group, of_vectors = w.own()
        assert of_vectors[OWNER] == group[OWNER]
        ratios.append((group[OWNER], group["lr"] / w.optimizers[0].param_groups[0]["lr"]))

    hypers = {"a": {"lr": 1e-3}, "b": {"lr": 1e-4, "weight_decay": 0.0}}
    acts = {
        2: lambda w: grow(w, "a"),
        4: lambda w: grow(w, "b"),
        5: cull_first,
        7: look,
        9: lambda w: w.manager.cull(order[1]),
    }
    assert_host_as_without(acts, 9, name, "sgd")
    # ReduceLROnPlateau keeps no note of the lr before it reduced it; it goes on from the lr of the day.
    host_lr = 1e-2 if name not in PLATEAU else plateau_lrs[order[1]]
    assert ratios == [(order[1], pytest.approx(hypers[order[1]]["lr"] / host_lr))]


@pytest.mark.parametrize("name", ALL)
def test_the_lr_of_a_seed_follows_the_schedule(name: str) -> None:
    """At every step it is a tenth of the lr of the group it is like, as was asked for."""
    world = World(name)
    nominal = {"CyclicLR, each its own": 1e-2}.get(name, float(world.optimizers[0].defaults["lr"]))

    def look(w: World) -> None:
        group, of_vectors = w.own()
        like = w.optimizers[0].param_groups[0]
        assert group["lr"] == pytest.approx(like["lr"] / 10, abs=1e-12)
        assert group["weight_decay"] == of_vectors["weight_decay"] == 0.5

    world.train(4)
    # Of what there was before it reduced the rates, this one keeps no note: it goes on from here.
    now = world.optimizers[0].param_groups[0]["lr"] if name in PLATEAU else nominal
    world.germinate(hyper={"lr": now / 10, "weight_decay": 0.5})
    look(world)
    world.train(9, dict.fromkeys(range(9), look), first=4)


def test_a_setting_that_is_not_given_is_that_of_the_group_the_seed_would_join() -> None:
    world = World("StepLR")
    world.train(4)
    world.germinate(hyper={})
    joined = world.optimizers[0].param_groups[:2]
    assert [dict(g, params=0) for g in world.own()] == [{**g, "params": 0, OWNER: "a"} for g in joined]


def test_a_momentum_of_its_own_does_not_cycle() -> None:
    world = World("OneCycleLR")
    world.train(2)
    world.germinate(hyper={"momentum": 0.5})
    world.train(6, first=2)
    assert [g["momentum"] for g in world.own()] == [pytest.approx(0.5)] * 2
    assert world.optimizers[0].param_groups[0]["momentum"] != pytest.approx(0.5)


def test_without_a_schedule_the_lr_is_the_one_given() -> None:
    world = World("", "muon and adamw")
    seed = world.germinate(hyper={"lr": 1e-3, "betas": (0.8, 0.9)})
    start = {n: p.detach().clone() for n, p in seed.module.named_parameters()}
    muon, adamw = world.own()
    assert (muon["lr"], adamw["lr"], adamw["betas"]) == (1e-3, 1e-3, (0.8, 0.9))
    assert [id(p) for g in (muon, adamw) for p in g["params"]] == [id(p) for p in seed.module.parameters()]
    world.train(2)
    assert not any(torch.equal(p, start[n]) for n, p in seed.module.named_parameters())


def test_a_tensor_as_lr_stays_one() -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    optimizer = torch.optim.AdamW(host.parameters(), torch.tensor(1e-2), foreach=False, capturable=False)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    scheduler.step()
    manager = fxgraft.SeedManager(host, optimizer, schedulers=[scheduler])
    manager.germinate(SLOT, linear, name="a", hyper={"lr": 1e-3})
    host_group, own = optimizer.param_groups
    scheduler.step()
    assert isinstance(own["lr"], torch.Tensor)
    assert own["lr"] is not host_group["lr"]
    assert float(own["lr"]) == pytest.approx(1e-3 * 0.25)


# Beside other seeds


def test_a_seed_that_joins_does_not_join_the_group_of_another() -> None:
    """Else it would no longer be trained once that other one is culled."""
    world = World("LambdaLR")
    many = nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)])  # more than the host's groups hold
    world.manager.germinate(SLOT, many, name="own", hyper=HYPER)
    joined = world.germinate("joined", hyper=None)
    assert {id(p) for g in world.own() for p in g["params"]}.isdisjoint(map(id, joined.module.parameters()))
    world.manager.cull("own")
    everywhere = [id(p) for o in world.optimizers for g in o.param_groups for p in g["params"]]
    assert [everywhere.count(id(p)) for p in joined.module.parameters()] == [1, 1]


def test_a_fossil_keeps_its_group() -> None:
    world = World("CosineAnnealingWarmRestarts")
    seed = world.germinate()
    world.manager.blend("a", steps=1)
    world.train(2)
    parameters = list(map(id, seed.module.parameters()))
    world.manager.fossilize("a")
    world.germinate("b")
    world.train(3, {1: lambda w: w.manager.cull("b")}, first=2)
    assert [id(p) for group in world.own() for p in group["params"]] == parameters
    shares = [group["lr"] / world.optimizers[0].param_groups[0]["lr"] for group in world.own()]
    assert shares == [pytest.approx(0.1)] * 2


def test_a_seed_without_parameters_adds_no_group() -> None:
    world = World("LambdaLR")
    before = world.look()
    world.manager.germinate(SLOT, nn.Linear(4, 4).requires_grad_(False), hyper=HYPER)
    assert_same_look(world.look(), before)


# Refusals and failures: nothing is changed


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        (
            {"lr": 1e-3, "learning_rate": 1},
            "unknown 'learning_rate'; the optimizers know: dampening.*lr.*momentum",
        ),
        ({"initial_lr": 1e-3}, "unknown 'initial_lr'"),
        ({"params": []}, "unknown 'params'"),
        ({"lr": -1.0}, "lr: expected"),
        ({"lr": float("nan")}, "lr: expected"),
        ({"weight_decay": "much"}, "weight_decay: expected"),
        ({"nesterov": 1}, "nesterov: expected"),
        ({"foreach": object()}, "foreach: expected"),
    ],
)
@pytest.mark.parametrize("wait", [True, False])
def test_what_cannot_be_is_refused(hyper: dict[str, Any], message: str, wait: bool) -> None:
    world = World("LambdaLR")
    world.train(2)
    before, seeds = world.look(), dict(world.manager.seeds)
    with pytest.raises(ValueError, match=message):
        world.germinate(hyper=hyper, wait=wait)
    assert_same_look(world.look(), before)
    assert dict(world.manager.seeds) == seeds
    world.germinate()


def test_a_scheduler_that_was_not_given_is_asked_for() -> None:
    world = World("LambdaLR", schedulers=[])
    before = world.look()
    with pytest.raises(ValueError, match="schedulers="):
        world.germinate()
    assert_same_look(world.look(), before)
    world.germinate(hyper=None)


def test_a_scheduler_of_another_optimizer_does_not_count() -> None:
    world = World("", "muon and adamw")
    schedulers = [lr_scheduler.ExponentialLR(o, 0.9) for o in world.optimizers]
    manager = fxgraft.SeedManager(world.host, world.optimizers, schedulers=schedulers[:1])
    with pytest.raises(ValueError, match=r"AdamW.*schedulers="):
        manager.germinate(SLOT, linear, hyper=HYPER)
    assert world.own() == []


def test_no_optimizer_is_no_place_for_hyper_parameters() -> None:
    manager = fxgraft.SeedManager(fxgraft.trace(PLAN.build(), (PLAN.batch(0),)))
    with pytest.raises(ValueError, match="expected an optimizer"):
        manager.germinate(SLOT, linear, hyper=HYPER)


@pytest.mark.parametrize("fails_at", [1, 2, 3])
@pytest.mark.parametrize("name", ["nested", "CyclicLR", "LambdaLR"])
def test_a_failure_while_lists_are_extended_is_undone(
    name: str, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(name)
    world.train(3)
    before, sets = world.look(), iter(range(1, 100))
    original = lr_scheduler.LRScheduler.__setattr__

    def failing(self: Any, key: str, value: Any) -> None:
        if next(sets) == fails_at:
            raise RuntimeError("injected")
        original(self, key, value)

    with monkeypatch.context() as patched:
        patched.setattr(lr_scheduler.LRScheduler, "__setattr__", failing)
        with pytest.raises(RuntimeError, match="injected"):
            world.germinate()
    assert_same_look(world.look(), before)
    world.germinate()
    world.train(2, first=3)


def test_a_failure_after_the_group_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("nested", "muon and adamw")
    world.train(3)
    before = world.look()
    with monkeypatch.context() as patched:
        patched.setattr("fxgraft.optimizers.gradients.SeedGradients.watch", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.germinate()
    assert_same_look(world.look(), before)


def test_a_blueprint_that_fails_adds_no_group() -> None:
    world = World("nested")
    before = world.look()
    with pytest.raises(BlueprintError):
        world.manager.germinate(SLOT, lambda slot: nn.Linear(9, 9), hyper=HYPER)
    assert_same_look(world.look(), before)


def test_prefetched_and_waited_for_give_the_same_groups() -> None:
    looks = []
    for wait in (True, False):
        world = World("nested")
        world.germinate(wait=wait)
        world.manager._background.wait(10)
        world.train(3)
        looks.append((settings(world.optimizers), scheduler_states(world.schedulers)))
    assert looks[0] == looks[1]


def test_a_culled_module_is_garbage() -> None:
    world = World("nested", "adamw")
    seed = world.germinate()
    refs = [weakref.ref(p) for p in seed.module.parameters()]
    world.train(3)
    world.manager.cull("a")
    world.host.zero_grad()
    assert are_collected(refs)


# Checkpoints


def _crowd(world: World) -> None:
    world.germinate("gone")
    world.germinate("fossil", hyper={"lr": 3e-3})
    world.germinate("joined", hyper=None)
    world.manager.blend("fossil", steps=1)
    world.train(1, first=3)
    world.manager.fossilize("fossil")
    world.germinate("b", hyper={"weight_decay": 0.1})
    world.manager.cull("gone")


def _late(world: World) -> None:
    """Asked for first, live second: the groups are not in the order of the seeds."""
    world.germinate("late", wait=False)
    world.germinate("early", hyper={"lr": 3e-3})
    world.manager._background.wait(10)
    world.train(1, first=3)


@pytest.mark.parametrize("course", [_crowd, _late, lambda w: w.germinate()], ids=["crowd", "late", "one"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["LambdaLR", "nested", "OneCycleLR", "ReduceLROnPlateau"])
def test_resume(name: str, kind: str, course: Callable[[World], Any], tmp_path: Path) -> None:
    """Losses, weights, groups and schedules go on as if nothing had happened."""
    straight = World(name, kind)
    straight.train(3)
    course(straight)
    straight.manager.save(tmp_path / "run")

    resumed = World(name, kind)
    names = ("a", "b", "late", "early", "joined", "fossil")
    resumed.manager = fxgraft.SeedManager.load(
        tmp_path / "run",
        resumed.host,
        resumed.optimizers,
        schedulers=resumed.schedulers,
        blueprints=dict.fromkeys(names, linear),
    )
    assert settings(resumed.optimizers) == settings(straight.optimizers)
    assert scheduler_states(resumed.schedulers) == scheduler_states(straight.schedulers)
    resumed.train(4, first=5).assert_same(straight.train(4, first=5))
    ours, theirs = (dict(sorted(w.host.state_dict().items())) for w in (resumed, straight))
    assert_same_bits(ours, theirs, "weights with seeds")
    for seed in [s for s in resumed.manager.seeds.values() if s.is_live]:
        for world in (resumed, straight):
            world.manager.cull(seed.name)
    assert settings(resumed.optimizers) == settings(straight.optimizers)
    assert scheduler_states(resumed.schedulers) == scheduler_states(straight.schedulers)


def test_a_live_host_is_rewound(tmp_path: Path) -> None:
    """Groups that came since are gone, those that were there are there: of seeds and of fossils."""
    world = World("nested", "adamw")
    world.germinate("then")
    world.manager.blend("then", steps=1)
    world.train(3)
    world.manager.save(tmp_path / "run")
    expected = (settings(world.optimizers), scheduler_states(world.schedulers))
    world.manager.fossilize("then")
    world.germinate("since")
    world.train(3, first=3)
    blueprints = {"then": linear}
    world.manager = rewind(
        world.manager, tmp_path / "run", world.host, world.optimizers, blueprints=blueprints
    )
    assert (settings(world.optimizers), scheduler_states(world.schedulers)) == expected
    world.train(2, first=3)


def test_a_group_that_says_it_is_anothers_is_refused() -> None:
    world = World("")
    world.germinate()
    (optimizer,) = world.optimizers
    saved = optimizer.state_dict()
    names = optimizers.parameter_names(optimizer, world.host)
    assert optimizers.check(optimizer, saved, names)["param_groups"][-1][OWNER] == "a"
    for group, owner in ((saved["param_groups"][0], "a"), (saved["param_groups"][-1], "b")):
        changed = [dict(g, **{OWNER: owner}) if g is group else g for g in saved["param_groups"]]
        with pytest.raises(CheckpointError, match="other groups"):
            optimizers.check(optimizer, {**saved, "param_groups": changed}, names)


def test_a_load_that_fails_adds_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = World("nested")
    saved.germinate()
    saved.manager.save(tmp_path / "run")
    fresh = World("nested")
    before = fresh.look()
    monkeypatch.setattr("fxgraft.checkpoint.optimizers.check", lambda *a: 1 / 0)
    with pytest.raises(CheckpointError):
        fxgraft.SeedManager.load(
            tmp_path / "run",
            fresh.host,
            fresh.optimizers,
            schedulers=fresh.schedulers,
            blueprints={"a": linear},
        )
    assert_same_look(fresh.look(), before)
