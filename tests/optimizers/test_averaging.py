"""EMA and SWA follow the structure of the host: averages stay pairs with what they average."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

import fxgraft
from fxgraft.averaging import follow
from fxgraft.errors import FxGraftError
from fxgraft_passes import Phase
from tests.harness import (
    are_collected,
    assert_same_bits,
    counting_backend,
    frozen,
    loss_of,
    snapshot,
    traced_plan,
)
from tests.lifecycle.test_failed_commits import STEPS, fail_once
from tests.seed_modules import FITTING, Drawing, Scale
from tests.strategies import Plan, lifecycle_calls, plans

DECAY = 0.75
PLAN = Plan(("linear", "batch_norm", "relu"))
SLOT = "body.linear0"
KINDS = {"ema": lambda: get_ema_multi_avg_fn(DECAY), "swa": get_swa_multi_avg_fn, "swa default": lambda: None}


class World:
    """A host that trains in float64, its average, and every parameter's history for the closed form."""

    def __init__(self, kind: str = "ema", plan: Plan = PLAN, **options: Any):
        self.plan, self.kind, self.steps, self.updates = plan, kind, 0, 0
        self.host = traced_plan(plan).double()
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer, **options)
        self.averaged = AveragedModel(self.host, multi_avg_fn=KINDS[kind]())
        self.averaged.eval()
        self.history: dict[str, tuple[int, list[Tensor]]] = {}
        follow(self.host, self.averaged)
        self.look()

    @property
    def twin(self) -> fxgraft.Host:
        return self.averaged.module

    def look(self) -> None:
        """A parameter that is new begins with its weight of now; the history of one that is gone goes."""
        now = dict(self.host.named_parameters())
        self.history = {
            n: self.history[n] if n in self.history else (self.updates, [frozen(now[n])]) for n in now
        }

    def train(self, steps: int = 1, update: bool = True) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss_of(self.host(self.plan.batch(self.steps, torch.float64))).backward()
            self.optimizer.step()
            self.manager.step()
            self.steps += 1
            if update:
                self.update()

    def update(self) -> None:
        self.averaged.update_parameters(self.host)
        for name, parameter in self.host.named_parameters():
            self.history[name][1].append(frozen(parameter))
        self.updates += 1
        self.check()

    def closed_form(self, name: str) -> Tensor:
        """The average as a weighted sum of all weights so far, the oldest first."""
        born, weights = self.history[name]
        if not born and len(weights) > 1:
            weights = weights[1:]  # the first update copies
        if self.kind == "ema":
            shares = [DECAY ** (len(weights) - 1)]
            shares += [(1 - DECAY) * DECAY**i for i in reversed(range(len(weights) - 1))]
        else:  # the weight at birth stands in for the updates before it
            shares = [float(born or 1)] + [1.0] * (len(weights) - 1)
        return sum(s * w for s, w in zip(shares, weights, strict=True)) / sum(shares)

    def check(self) -> None:
        """Pairs, values, structure, and what the average computes."""
        assert_aligned(self.host, self.twin)
        for name, average in self.twin.named_parameters():
            torch.testing.assert_close(average.detach(), self.closed_form(name), msg=lambda m, n=name: n + m)
        assert_same_bits(dict(self.twin.named_buffers()), dict(self.host.named_buffers()), "buffers")
        assert not any(module.training for module in self.averaged.modules())
        reference = copy.deepcopy(self.host)
        reference.load_state_dict(self.twin.state_dict())
        x = self.plan.batch(99, torch.float64)
        assert_same_bits(frozen(self.averaged(x)), frozen(reference.eval()(x)), "output")


def assert_aligned(host: fxgraft.Host, twin: fxgraft.Host) -> None:
    ours, theirs = list(host.named_parameters()), list(twin.named_parameters())
    assert [(n, p.shape) for n, p in ours] == [(n, p.shape) for n, p in theirs]
    assert not {id(p) for _, p in ours} & {id(p) for _, p in theirs}
    assert list(host.state_dict()) == list(twin.state_dict())
    assert twin.phase is host.phase
    places = [[(p.seed, p.slot.name, p.spec, p.kind) for p in h.structure.placements] for h in (host, twin)]
    assert places[0] == places[1]
    assert all(p.slot is twin.slots[p.slot.name] for p in twin.structure.placements)
    assert [r.code for r in twin.regions.values()] == [r.code for r in host.regions.values()]


@pytest.mark.parametrize("end", ["fossilize", "cull"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_life_of_two_seeds(kind: str, end: str) -> None:
    world = World(kind)
    manager = world.manager
    world.train(2)
    manager.germinate(SLOT, nn.Linear(4, 4), name="b", mode="gated")
    world.look()
    world.train(3)
    manager.germinate(SLOT, Drawing(), name="a")  # in front of b, but behind it in parameters()
    world.look()
    world.train(2)
    manager.blend("b", to=0.5, steps=3)
    world.train(1)
    world.train(2, update=False)
    assert_aligned(world.host, world.twin)
    world.train(1)
    getattr(manager, end)("b")
    world.look()
    world.train(2)
    assert [n for n in world.history if n.startswith("_seeds.b.")] == (
        ["_seeds.b.module.gate", "_seeds.b.module.branch.weight", "_seeds.b.module.branch.bias"]
        if end == "fossilize"
        else []
    )
    manager.cull("a")
    world.look()
    world.train(2)


def test_the_average_of_a_blended_seed_by_hand() -> None:
    world = World(plan=Plan(("linear",)))
    world.manager.germinate(SLOT, Scale(), name="a")
    world.look()
    world.manager.blend("a", to=0.5, steps=2, schedule="linear")
    world.train(1)
    weights = {name: world.closed_form(name) for name in world.history}
    linear = nn.functional.linear
    x = PLAN.batch(7, torch.float64)
    h = linear(x, weights["stem.weight"], weights["stem.bias"])
    h = linear(h, weights["body.linear0.weight"], weights["body.linear0.bias"])
    h = h + 0.25 * (weights["_seeds.a.module.weight"] * h + weights["_seeds.a.module.bias"])
    expected = linear(h, weights["head.0.weight"], weights["head.0.bias"]).tanh()
    torch.testing.assert_close(world.averaged(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_cull_the_average_is_that_of_a_run_without_the_seed(kind: str) -> None:
    grown, plain = World(kind), World(kind)
    for world in (grown, plain):
        world.train(2)
    grown.manager.germinate(SLOT, Scale(), name="a")
    grown.look()
    for world in (grown, plain):
        world.train(3)
    grown.manager.cull("a")
    grown.look()
    for world in (grown, plain):
        assert_same_bits(world.twin.state_dict(), plain.twin.state_dict(), "before the update")
        world.train(2)
    assert_same_bits(grown.twin.state_dict(), plain.twin.state_dict(), "state")
    assert [n for n, _ in grown.twin.named_parameters()] == [n for n, _ in plain.twin.named_parameters()]
    assert [r.code for r in grown.twin.regions.values()] == [r.code for r in plain.twin.regions.values()]
    assert all("forward" not in m.__dict__ for m in grown.twin.__dict__["_root"].modules())


def test_a_culled_seed_is_gone_from_the_average() -> None:
    world = World()
    module = world.manager.germinate(SLOT, Scale(), name="a").module
    assert module is not None
    world.look()
    world.train(2)
    graft = world.twin.graft("a")
    assert graft.module is not module
    refs = [weakref.ref(o) for o in (module, graft, graft.module, graft.alpha, *graft.parameters())]
    del module, graft
    world.manager.cull("a")
    world.history.clear()
    assert are_collected(refs)


def test_a_name_that_is_used_again_begins_anew() -> None:
    world = World()
    for weight in (0.5, 2.0):
        world.manager.germinate(SLOT, Scale(weight), name="a")
        world.look()
        assert world.twin.graft("a").module.weight.item() == weight
        world.train(2)
        world.manager.cull("a")
        world.look()
    world.train(1)


# Failures


def seen(world: World) -> dict[str, Any]:
    return snapshot(world.twin, PLAN.batch(9, torch.float64))


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failed_germination_leaves_the_average(
    step: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.manager.germinate(SLOT, Scale(), name="other")
    world.look()
    world.train(2)
    before = seen(world)
    with monkeypatch.context() as patched:
        fail_once(patched, *STEPS[step], RuntimeError("injected"), late)
        with pytest.raises(RuntimeError, match="injected"):
            world.manager.germinate(SLOT, Scale(), name="a")
    assert_same_bits(seen(world), before, "the average")
    world.train(1)


@pytest.mark.parametrize("action", ["cull", "fossilize"])
@pytest.mark.parametrize("step", ["generate the code", "swap the structure", "compile"])
def test_a_failed_end_leaves_the_average_with_its_weights(
    step: str, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.manager.germinate(SLOT, Scale(), name="a")
    world.look()
    world.manager.blend("a", steps=2)
    world.train(2)
    before = seen(world)
    with monkeypatch.context() as patched:
        fail_once(patched, *STEPS[step], RuntimeError("injected"), late=True)
        with pytest.raises(RuntimeError, match="injected"):
            getattr(world.manager, action)("a")
    assert_same_bits(seen(world), before, "the average")
    world.train(1)


class Single(Scale):
    """Cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Single:
        raise TypeError("there can be only one")


def test_a_seed_that_cannot_be_copied_is_refused_and_changes_nothing() -> None:
    world = World()
    world.train(1)
    before = seen(world), snapshot(world.host, PLAN.batch(9, torch.float64), [world.optimizer])
    with pytest.raises(FxGraftError, match=r"'a'.*cannot be copied.*only one"):
        world.manager.germinate(SLOT, lambda slot: Single(), name="a")
    after = seen(world), snapshot(world.host, PLAN.batch(9, torch.float64), [world.optimizer])
    for ours, theirs in zip(after, before, strict=True):
        assert_same_bits(ours, theirs)
    world.manager.germinate(SLOT, Scale(), name="a")
    world.look()
    world.train(1)


# What follows, and what does not


def test_a_dead_average_keeps_nothing_and_is_not_kept() -> None:
    world = World()
    world.manager.germinate(SLOT, Scale(), name="a")
    refs = [weakref.ref(o) for o in (world.averaged, world.twin, world.twin.graft("a"))]
    refs += [weakref.ref(p) for p in world.averaged.parameters()]
    assert len(world.host._links.followers) == 1
    del world.averaged
    assert are_collected(refs)
    assert not world.host._links.followers
    world.train(1, update=False)
    world.manager.cull("a")


def test_an_average_outlives_its_host() -> None:
    world = World()
    world.train(2)
    averaged, ref = world.averaged, weakref.ref(world.host)
    expected = frozen(averaged(PLAN.batch(1, torch.float64)))
    del world
    assert are_collected([ref])
    assert_same_bits(frozen(averaged(PLAN.batch(1, torch.float64))), expected, "output")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))])
def test_a_copy_of_the_host_leads_nobody(copied: Callable[[fxgraft.Host], fxgraft.Host]) -> None:
    world = World()
    other = copied(world.host)
    assert not other._links.followers
    fxgraft.SeedManager(other).germinate(SLOT, Scale(), name="a")
    assert not world.twin.grafts()
    world.manager.germinate(SLOT, Scale(), name="b")
    world.look()
    world.train(1)


def test_several_averages_of_one_host() -> None:
    worlds = World("swa"), World("ema")
    host = worlds[0].host
    second = AveragedModel(host, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    follow(host, second)
    for world in worlds:
        world.train(1)
    second.update_parameters(host)
    for world in worlds:
        world.manager.germinate(SLOT, Scale(), name="a")
        world.look()
        world.train(1)
    second.update_parameters(host)
    assert_same_bits(second.module.state_dict(), worlds[1].twin.state_dict(), "the other average")


class Around(nn.Module):
    """A wrapper as ``DistributedDataParallel`` is one."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


def test_a_wrapped_host() -> None:
    wrapped = Around(fxgraft.trace(PLAN.build(), (PLAN.batch(0),)))
    averaged = AveragedModel(wrapped)
    follow(wrapped, averaged)
    fxgraft.SeedManager(wrapped).germinate(SLOT, Scale(), name="a")
    averaged.update_parameters(wrapped)
    assert_aligned(wrapped.module, averaged.module.module)


def test_a_new_seed_has_dtype_and_mode_of_the_average() -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    averaged = AveragedModel(host, avg_fn=lambda average, new, n: average + (new - average) / (n + 1))
    averaged.double().eval()
    follow(host, averaged)
    manager = fxgraft.SeedManager(host)
    for i in range(2):
        manager.germinate(SLOT, Drawing(), name=f"seed{i}")
        averaged.update_parameters(host)
        assert averaged(PLAN.batch(1, torch.float64)).dtype is torch.float64
    assert host.training
    assert not any(m.training for m in averaged.modules())
    assert {p.dtype for p in averaged.module.parameters()} == {torch.float64}
    assert {p.dtype for p in host.parameters()} == {torch.float32}


def test_looking_at_seeds_leaves_the_average() -> None:
    world = World(strict=True, check_every=1)
    world.manager.germinate(SLOT, Scale(), name="a", objective="shadow")
    world.look()
    world.train(1)
    before = seen(world)
    x = PLAN.batch(3, torch.float64)
    with world.manager.shadow():
        assert world.twin.phase is Phase.ISOLATED
        loss_of(world.host(x)).backward()
    with world.manager.at_alpha("a", 1.0):
        world.host(x)
    assert_same_bits(seen(world), before, "the average")
    world.train(2)


def test_batch_norm_statistics_of_the_average() -> None:
    world = World()
    world.manager.germinate(SLOT, nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), name="a")
    world.look()
    world.manager.blend("a", steps=4)
    world.train(3)
    loader = [PLAN.batch(i, torch.float64) for i in range(20, 23)]
    reference = copy.deepcopy(world.averaged)
    update_bn(loader, world.averaged)
    update_bn(loader, reference)
    assert_same_bits(world.averaged.state_dict(), reference.state_dict(), "statistics")
    alpha, twin = world.manager.seeds["a"].alpha, world.twin
    assert 0 < alpha < 1
    with torch.no_grad():
        at_slot = [twin.body.linear0(twin.stem(x)) for x in loader]
        branch = twin.graft("a").module
        raw = [branch[0](h) for h in at_slot]
    mean = torch.stack([r.mean(0) for r in raw]).mean(0)
    torch.testing.assert_close(branch[1].running_mean, mean)
    norm = nn.BatchNorm1d(4, affine=False).double()
    scaled = [norm(r) * branch[1].weight + branch[1].bias for r in raw]
    mean = torch.stack([(h + alpha * s).mean(0) for h, s in zip(at_slot, scaled, strict=True)]).mean(0)
    torch.testing.assert_close(twin.body.norm1.running_mean, mean.detach())
    world.train(1)


def test_the_average_of_a_compiled_host_stays_eager(fresh_compiler: None) -> None:
    world = World(plan=Plan(("linear",)))
    backend = counting_backend()
    world.host.compile(backend=backend)
    world.train(1)
    world.manager.germinate(SLOT, Scale(), name="a")
    world.look()
    world.train(2)
    compiled = backend.frame_count
    world.manager.blend("a", steps=2)
    world.train(3)
    world.manager.fossilize("a")
    world.look()
    world.train(1, update=False)
    world.update()
    assert world.twin.compiled is None
    assert compiled
    assert backend.frame_count - compiled == 1  # the fossil's structure, and no average


# Refusals


def test_what_cannot_follow_is_refused() -> None:
    def host_of(plan: Plan = PLAN) -> fxgraft.Host:
        return fxgraft.trace(plan.build(), (plan.batch(0),))

    host = host_of()
    manager = fxgraft.SeedManager(host)
    manager.germinate(SLOT, Scale(), name="a")
    stale = AveragedModel(host)
    manager.cull("a")
    manager.germinate(SLOT, Scale(), name="b")
    before = seen_structure(stale.module)
    for averaged, words in [
        (AveragedModel(host, use_buffers=True), "use_buffers=False"),
        (host, "the host itself"),
        (AveragedModel(host_of(Plan(("relu",)))), "slots are others"),
        (stale, r"\['b'\]; got \['a'\].*anew"),
    ]:
        with pytest.raises(ValueError, match=words):
            follow(host, averaged)
    with pytest.raises(TypeError, match=r"averaged: expected a fxgraft.Host.*Linear"):
        follow(host, nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"host: expected a fxgraft.Host.*AveragedModel"):
        follow(AveragedModel(nn.Linear(2, 2)), AveragedModel(host))
    assert not host._links.followers
    assert seen_structure(stale.module) == before


def test_an_average_of_a_narrower_host_is_refused() -> None:
    x = torch.randn(3, 4)
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (x,))
    stale = AveragedModel(host)
    fxgraft.SeedManager(host).widen("0", 2)
    with pytest.raises(ValueError, match=r"has shape .*; got .*: the host has grown wider"):
        follow(host, stale)
    assert not host._links.followers
    follow(host, AveragedModel(host))


def seen_structure(host: fxgraft.Host) -> tuple[Any, ...]:
    return host.structure, host.phase, list(host.state_dict())


def test_an_average_of_a_host_in_mid_life_may_follow_later() -> None:
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),))
    manager = fxgraft.SeedManager(host)
    manager.germinate(SLOT, Scale(), name="a")
    averaged = AveragedModel(host)
    manager.blend("a", steps=1)
    follow(host, averaged)
    assert_aligned(host, averaged.module)


def test_an_average_goes_on_with_a_saved_run(tmp_path: Path) -> None:
    world = World()
    world.manager.germinate(SLOT, "low_rank", name="a", rank=2)
    world.look()
    world.train(3)
    world.manager.save(tmp_path / "run")
    host = fxgraft.trace(PLAN.build(), (PLAN.batch(0),)).double()
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = fxgraft.SeedManager.load(tmp_path / "run", host, optimizer)
    averaged = AveragedModel(host, multi_avg_fn=KINDS["ema"]())
    follow(host, averaged)
    averaged.load_state_dict(world.averaged.state_dict())
    for m, h, o, a in [
        (world.manager, world.host, world.optimizer, world.averaged),
        (manager, host, optimizer, averaged),
    ]:
        m.blend("a", steps=2)
        for i in range(3):
            o.zero_grad()
            loss_of(h(PLAN.batch(i, torch.float64))).backward()
            o.step()
            m.step()
            a.update_parameters(h)
    assert_same_bits(averaged.state_dict(), world.averaged.state_dict(), "the average")


# Any life


def act(manager: fxgraft.SeedManager, call: str, number: int) -> None:
    slots, seeds = list(manager.host.slots), list(manager.seeds)
    if call == "germinate":
        blueprint = FITTING[["scale", "drawing", "counting", "still"][number % 4]]
        manager.germinate(slots[number % len(slots)], blueprint)
    elif call == "step":
        manager.step()
    elif call in ("train", "eval"):
        getattr(manager.host, call)()
    elif seeds:
        options = {"to": 1.0 - number % 2 * 0.5, "steps": 1 + number % 2} if call == "blend" else {}
        getattr(manager, call)(seeds[number % len(seeds)], **options)


@given(plans(), lifecycle_calls(), st.integers(0, 3))
def test_any_life_is_mirrored(plan: Plan, calls: list[tuple[str, int]], every: int) -> None:
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    averaged = AveragedModel(host, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    follow(host, averaged)
    for i, (call, number) in enumerate(calls):
        try:
            act(manager, call, number)
        except fxgraft.errors.StageError:
            assert call in ("blend", "cull", "fossilize")
        assert_aligned(host, averaged.module)
        if i % (every + 1) == 0:
            averaged.update_parameters(host)
    averaged.update_parameters(host)
    # Nobody trained: an average of equal weights is those weights, up to rounding.
    out = [frozen(module.eval()(plan.batch(1))) for module in (host, averaged)]
    torch.testing.assert_close(out[1], out[0])
