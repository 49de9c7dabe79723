"""The order in which seeds are germinated does not show in the result."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

import fxgraft
from tests.harness import assert_same_bits, observed_call
from tests.seed_modules import FITTING, Drawing, Scale
from tests.strategies import Plan, plans

PLACES = st.lists(st.tuples(st.integers(0, 8), st.sampled_from(list(FITTING))), min_size=2, max_size=5)


def grown(plan: Plan, order: list) -> tuple[fxgraft.Host, fxgraft.SeedManager]:
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    for name, number, seed in order:
        slot = list(host.slots)[number % len(host.slots)]
        manager.germinate(slot, FITTING[seed], name=name)
    return host, manager


@given(plans(), PLACES, st.randoms(use_true_random=False), st.booleans())
def test_the_order_in_which_slots_are_seeded_does_not_matter(
    plan: Plan, places: list, shuffler: random.Random, blended: bool
) -> None:
    order = [(f"s{i}", number, seed) for i, (number, seed) in enumerate(places)]
    width = len(fxgraft.trace(plan.build(), (plan.batch(0),)).slots)
    turns = list({number % width: None for _, number, _ in order})
    shuffler.shuffle(turns)
    shuffled = sorted(order, key=lambda seed: turns.index(seed[1] % width))  # stable: as before at each slot
    a, first = grown(plan, order)
    b, second = grown(plan, shuffled)
    for manager in (first, second) if blended else ():
        for name, _, _ in order:
            manager.blend(name, to=0.5, steps=1)
        manager.step()
    assert [r.code for r in a.regions.values()] == [r.code for r in b.regions.values()]
    assert [str(r.graph) for r in a.regions.values()] == [str(r.graph) for r in b.regions.values()]
    assert_same_bits(observed_call(a, plan.batch(1)), observed_call(b, plan.batch(1)), "call")


def test_seeds_at_one_slot_compose_in_the_order_of_germination() -> None:
    plan = Plan(("linear",))
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    manager = fxgraft.SeedManager(host)
    for name, weight in (("s10", 3.0), ("s2", 5.0), ("a", 2.0)):
        manager.germinate("body.linear0", Scale(weight, 1.0), name=name)
        manager.blend(name, steps=1)
    manager.step()
    h = host.body.linear0(host.stem(plan.batch(1)))
    for name in ("s10", "s2", "a"):
        h = h + manager.seeds[name].module(h)
    assert_same_bits(host(plan.batch(1)), host.head(h), "output")


def test_automatic_names_are_never_used_twice() -> None:
    plan = Plan(("linear",))
    manager = fxgraft.SeedManager(fxgraft.trace(plan.build(), (plan.batch(0),)))
    names = []
    for _ in range(4):
        seed = manager.germinate("body.linear0", Scale())
        names.append(seed.name)
        manager.cull(seed)
    assert len(set(names)) == 4


def test_a_name_given_by_hand_is_not_given_again_automatically() -> None:
    plan = Plan(("linear",))
    manager = fxgraft.SeedManager(fxgraft.trace(plan.build(), (plan.batch(0),)))
    manager.germinate("body.linear0", Drawing(), name="Scale_0")
    first = manager.germinate("body.linear0", Scale())
    manager.cull(first)
    assert first.name not in ("Scale_0", manager.germinate("body.linear0", Scale()).name)
