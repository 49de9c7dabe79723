"""A state of other seeds than the host has: the host grows them where the state says how, or refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft import Stage
from fxgraft.errors import BlueprintError, CheckpointError, StageError
from fxgraft.host.state_loading import ENTRY
from tests.harness import assert_same_bits, frozen, snapshot
from tests.strategies import Plan, lifecycle_calls, plans

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def fresh() -> fxgraft.Host:
    torch.manual_seed(0)
    return fxgraft.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (X,))


def grown(*, say: bool = True) -> tuple[fxgraft.Host, fxgraft.SeedManager]:
    """With a fossil and a seed that learns; it says so in its states, or does not."""
    host = fresh()
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = fxgraft.SeedManager(host, optimizer)
    if say:
        host.structure_entry = lambda host: manager.describe()
    manager.germinate("1", "mlp", name="a", hidden=4)
    manager.germinate("2", "low_rank", name="b")
    manager.blend("a", to=0.75, steps=1)
    for _ in range(3):
        optimizer.zero_grad()
        host(X).square().mean().backward()
        optimizer.step()
        manager.step()
    manager.fossilize("a")
    return host, manager


@pytest.mark.parametrize("strict", [True, False])
def test_what_grew_is_not_dropped(strict: bool) -> None:
    host, _ = grown(say=False)
    target = fresh()
    before = frozen(dict(target.state_dict()))
    with pytest.raises(CheckpointError, match=r"2 seeds \(.*\), which the host has not.*SeedManager\.load"):
        target.load_state_dict(host.state_dict(), strict=strict)
    assert_same_bits(dict(target.state_dict()), before, "nothing is loaded")


@pytest.mark.parametrize("strict", [True, False])
def test_what_grew_does_not_stay_on_other_weights(strict: bool) -> None:
    host, _ = grown()
    before = frozen(dict(host.state_dict()))
    with pytest.raises(CheckpointError, match=r"without 2 seeds .*host\.clear\(\)"):
        host.load_state_dict(fresh().state_dict(), strict=strict)
    assert_same_bits(dict(host.state_dict()), before, "nothing is loaded")


def test_a_part_of_the_weights_may_be_loaded_into_a_host_that_has_grown() -> None:
    host, _ = grown()
    bias = torch.randn(8)
    host.load_state_dict({"0.bias": bias}, strict=False)
    assert torch.equal(host.state_dict()["0.bias"], bias)


def test_a_state_without_seeds_has_no_entry() -> None:
    host = fresh()
    manager = fxgraft.SeedManager(host)
    host.structure_entry = lambda host: manager.describe()
    assert list(host.state_dict()) == list(fresh().state_dict())


class Outer(nn.Module):
    def __init__(self, host: nn.Module):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(2, 2), host])


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("outer", [False, True])
def test_a_fresh_host_grows_what_the_state_says(outer: bool, assign: bool) -> None:
    host, manager = grown()
    target = fresh()
    around = (Outer(host), Outer(target)) if outer else (host, target)
    assert not around[1].load_state_dict(around[0].state_dict(), assign=assign).missing_keys
    assert_same_bits(frozen(target.eval()(X)), frozen(host.eval()(X)), "output")
    assert dict(target.state_dict()).keys() == dict(host.state_dict()).keys()
    own = copy.deepcopy(target)
    again = fresh()
    again.load_state_dict(own.state_dict())  # it and its copies say it again
    assert_same_bits(frozen(again.eval()(X)), frozen(host(X)), "output")
    assert manager.seeds["a"].stage is Stage.FOSSILIZED


def test_another_manager_leads_what_a_state_says() -> None:
    host, manager = grown()
    target = fresh()
    optimizer = torch.optim.AdamW(target.parameters(), 1e-2)
    other = fxgraft.SeedManager(target, optimizer)
    with pytest.raises(CheckpointError, match="has a SeedManager"):
        target.load_state_dict(host.state_dict())
    other.lead(manager.describe()[0])
    target.load_state_dict({name: value for name, value in host.state_dict().items() if name != ENTRY})
    assert_same_bits(frozen(target(X)), frozen(host(X)), "output")
    assert [(s.name, s.stage, s.alpha, s.trained_steps) for s in other.seeds.values()] == [
        (s.name, s.stage, s.alpha, s.trained_steps) for s in manager.seeds.values()
    ]
    placed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert placed == {id(p) for p in target.parameters()}
    with pytest.raises(CheckpointError, match="has seeds already"):
        other.lead(manager.describe()[0])


def test_a_host_that_has_these_seeds_takes_their_weights_alone() -> None:
    """Whether or not it has a manager, which stays; with other seeds, or other alphas, it is told."""
    host, manager = grown()
    state = {name: value.clone() for name, value in host.state_dict().items()}
    expected = frozen(host(X))
    with torch.no_grad():
        for parameter in host.parameters():
            parameter.mul_(2)
    host.load_state_dict(state)
    assert_same_bits(frozen(host(X)), expected, "output")
    assert manager.seeds["b"].module is host.graft("b").module
    manager.blend("b", steps=1)
    manager.step()
    with pytest.raises(CheckpointError, match="has a SeedManager"):
        host.load_state_dict(state)


def test_a_seed_from_code_needs_its_blueprint() -> None:
    host, manager = grown()
    manager.germinate("1", nn.Linear(8, 8), name="c")
    target = fresh()
    with pytest.raises(CheckpointError, match=r"'c' was germinated from code \(Linear\).*seed_blueprints"):
        target.load_state_dict(host.state_dict())
    assert not target.grafts()
    target.seed_blueprints["c"] = lambda slot: nn.Linear(8, 8)
    target.load_state_dict(host.state_dict())
    assert_same_bits(frozen(target(X)), frozen(host(X)), "output")


@given(st.data())
def test_a_damaged_entry_is_refused_and_changes_nothing(data: st.DataObject) -> None:
    host, _ = grown()
    state: dict[str, Any] = dict(host.state_dict())
    kind = data.draw(st.sampled_from(["cut", "flip", "number", "dtype", "no weights"]))
    entry: Tensor = state[ENTRY].clone()
    place = data.draw(st.integers(0, len(entry) - 1))
    if kind == "cut":
        state[ENTRY] = entry[:place]
    elif kind == "flip":
        entry[place] ^= data.draw(st.integers(1, 255))
        state[ENTRY] = entry
    elif kind == "number":
        state[ENTRY] = 3
    elif kind == "dtype":
        state[ENTRY] = entry.float()
    else:
        state = {name: value for name, value in state.items() if not name.startswith("_seeds.a.")}
    target = fresh()
    before = snapshot(target, X)
    try:
        target.load_state_dict(state)
    except (CheckpointError, RuntimeError):  # RuntimeError: torch's, of weights in other shapes
        if not target.grafts():
            assert_same_bits(snapshot(target, X), before, "the host")
    else:
        assert kind == "flip"  # in a number, or between words


@given(plans(), lifecycle_calls(), st.lists(st.integers(0, 12), max_size=3))
def test_any_life_goes_into_a_fresh_host_by_its_state(
    plan: Plan, calls: list[tuple[str, int]], moments: list[int]
) -> None:
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    host.structure_entry = lambda host: manager.describe()
    target = fxgraft.trace(plan.build(), (plan.batch(0),))
    for i, (call, number) in enumerate(calls):
        seeds, slots = list(manager.seeds), list(host.slots)
        try:
            if call == "germinate":
                names = ["mlp", "low_rank"]
                manager.germinate(slots[number % len(slots)], names[number % 2], isolated=number % 3 > 0)
            elif call == "step":
                manager.step()
            elif call in ("blend", "cull", "fossilize") and seeds:
                options: dict[str, Any] = (
                    {"to": 1.0 - number % 2 * 0.5, "steps": 1} if call == "blend" else {}
                )
                if call == "cull":
                    options = {"wait": number % 2 == 0}  # one that is culled later is in no state
                getattr(manager, call)(seeds[number % len(seeds)], **options)
        except (StageError, BlueprintError):  # of a wrong stage, or at a value of no rows
            pass
        if i in moments or i == len(calls) - 1:
            if not manager.seeds:
                target.clear()
            target.load_state_dict(host.state_dict())
            assert target.grafts().keys() == manager.seeds.keys()
            out = [frozen(module.eval()(plan.batch(1))) for module in (host, target)]
            assert_same_bits(out[1], out[0], "output")
