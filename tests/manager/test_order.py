"""The order of the seeds at one slot: that of germination, or as ``before`` and ``after`` say."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, commands
from fxgraft.checkpoint.file import _digest
from fxgraft.errors import StageError
from fxgraft.util.bits import same_bits
from tests.harness import traced_once

X = torch.arange(6.0).view(3, 2) / 7


class Affine(nn.Module):
    """``a x + b``: which ones, and in which order, shows in the value."""

    def __init__(self, a: float, b: float):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x + self.b


class TwoTanh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) + self.act(x * 2) * 3


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(TwoTanh(), (X,))


def run(**options: Any) -> SeedManager:
    return SeedManager(traced(), check_every=0, **options)


def affine(number: int) -> Affine:
    return Affine(0.5 + number / 10, 0.1 * number)


def grown(manager: SeedManager, name: str | None, number: int, slot: str = "act", **options: Any) -> str:
    """A convex seed that is at alpha 1, so that the next in the chain reads its output."""
    seed = manager.germinate(slot, affine(number), name=name, mode="convex", isolated=False, **options)
    if seed.is_live:
        manager.blend(seed, steps=1)
        manager.step()
    return seed.name


def expected(numbers: list[int], second: list[int] | None = None) -> Tensor:
    first, other = X.tanh(), (X * 2).tanh()
    for number in numbers:
        first = affine(number)(first)
    for number in second or []:
        other = affine(number)(other)
    return first + other * 3


def test_25_convex_seeds_with_names_of_their_own_making() -> None:
    manager = run()
    names = [grown(manager, None, number) for number in range(25)]
    assert names == ["Affine_at_act", *(f"Affine_at_act-{number}" for number in range(2, 26))]
    assert list(manager.seeds) == names
    assert same_bits(manager.host(X), expected(list(range(25))))


def test_seeds_may_be_given_for_their_names() -> None:
    manager = run()
    grown(manager, "b", 0)
    grown(manager, "a", 1, before=manager.seeds["b"])
    grown(manager, "c", 2, after=manager.seeds["a"])
    assert list(manager.seeds) == ["a", "c", "b"]
    assert same_bits(manager.host(X), expected([1, 2, 0]))
    with pytest.raises(StageError, match="which this manager did not germinate"):
        manager.germinate("act", affine(3), before=fxgraft.Seed("x", "act", "mlp", manager.seeds["a"].spec))


def test_names_say_nothing(tmp_path: Path) -> None:
    manager = run()
    for number, name in enumerate(["z", "b", "10", "9", "a"]):
        grown(manager, name, number)
    value = expected([0, 1, 2, 3, 4])
    assert same_bits(manager.host(X), value)
    assert same_bits(copy.deepcopy(manager.host)(X), value)
    assert same_bits(pickle.loads(pickle.dumps(manager.host))(X), value)
    manager.save(tmp_path / "run")
    again = SeedManager.load(
        tmp_path / "run",
        fxgraft.trace(TwoTanh(), (X,)),
        blueprints={"Affine": lambda slot: Affine(0.0, 0.0)},
    )
    assert list(again.seeds) == ["z", "b", "10", "9", "a"]
    assert same_bits(again.host(X), value)
    again.fossilize("b")
    assert same_bits(again.host(X), value)
    again.cull("10")
    assert same_bits(again.host(X), expected([0, 1, 3, 4]))


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({}, [0, 1, 2, 9]),
        ({"before": "s0"}, [9, 0, 1, 2]),
        ({"before": "s2"}, [0, 1, 9, 2]),
        ({"after": "s0"}, [0, 9, 1, 2]),
        ({"after": "s2"}, [0, 1, 2, 9]),
        ({"after": "s0", "before": "s2"}, [0, 1, 9, 2]),
    ],
)
@pytest.mark.parametrize("fossils", [False, True])
def test_before_and_after(options: dict[str, str], order: list[int], fossils: bool) -> None:
    manager = run()
    for number in range(3):
        grown(manager, f"s{number}", number)
        if fossils:
            manager.fossilize(f"s{number}")
    planned = manager.plan("act", affine(9), name="new", mode="convex", isolated=False, **options)
    grown(manager, "new", 9, **options)
    assert same_bits(manager.host(X), expected(order))
    assert planned.order == tuple("new" if number == 9 else f"s{number}" for number in order)
    assert f"order       {', '.join(planned.order)}" in str(planned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"before": "z"}, r"before: expected .* seed at slot 'act' \(a, b\); got 'z'.*no such seed"),
        ({"after": "c"}, r"after: expected .* got 'c': it is at slot 'act_1'"),
        ({"before": "a", "after": "b"}, "'a' does not stand behind 'b'"),
        ({"before": "a", "after": "a"}, "'a' does not stand behind 'a'"),
        ({"before": 3}, "before: expected the name of a seed"),
    ],
)
@pytest.mark.parametrize("wait", [True, False])
def test_a_place_that_there_is_not_is_refused(options: dict[str, Any], message: str, wait: bool) -> None:
    manager = run()
    for name, slot in (("a", "act"), ("b", "act"), ("c", "act_1")):
        grown(manager, name, 1, slot)
    code = manager.host.regions[""].code
    with pytest.raises(StageError, match=message):
        manager.germinate("act", affine(2), name="new", wait=wait, **options)
    with pytest.raises(StageError, match=message):
        manager.plan("act", affine(2), **options)
    assert list(manager.seeds) == ["a", "b", "c"]
    assert manager.host.regions[""].code == code
    grown(manager, "new", 2)


def test_commands_say_before_and_after() -> None:
    manager = run()
    for number, name in enumerate("ab"):
        grown(manager, name, number)
    command = {"type": "SEED", "slot": "act", "blueprint": "mlp", "name": "n", "after": "a"}
    assert manager.handle(json.dumps(command)).accepted
    assert list(manager.seeds) == ["a", "n", "b"]
    assert manager.handle(commands.SEED(slot="act", blueprint="mlp", name="m", before="a")).accepted
    assert list(manager.seeds) == ["m", "a", "n", "b"]
    refused = manager.handle({**command, "name": "k", "after": "nobody"})
    assert refused.refused
    assert "got 'nobody'" in refused.reason
    assert [p.seed for p in manager.host.structure.placements] == ["m", "a", "n", "b"]


def test_what_was_prepared_in_the_background_stands_where_it_was_asked_for() -> None:
    manager = run(helper="off")
    grown(manager, "a", 0)
    late = manager.germinate("act", affine(1), name="late", mode="convex", isolated=False, wait=False)
    grown(manager, "b", 2)
    manager.germinate(
        "act", affine(3), name="first", mode="convex", isolated=False, wait=False, before="late"
    )
    assert list(manager.seeds) == ["a", "first", "late", "b"]
    manager._background.wait()
    manager.step()
    assert late.is_live
    for name in ("late", "first"):
        manager.blend(name, steps=1)
    manager.step()
    assert same_bits(manager.host(X), expected([0, 3, 1, 2]))


def test_all_calls_of_a_module_and_one_of_them() -> None:
    manager = run()
    grown(manager, "second", 1, "act_1")
    grown(manager, "both", 2, "act@*")
    grown(manager, "last", 3, "act_1")
    grown(manager, "front", 4, "act", before="both")
    assert same_bits(manager.host(X), expected([4, 2], [1, 2, 3]))


def test_a_checkpoint_of_the_first_version_keeps_the_order_that_it_had(tmp_path: Path) -> None:
    """In version 1 the seeds at a slot stood in the order of their names, and the file did not say so."""
    manager = run()
    for number, name in enumerate("cab"):
        grown(manager, name, number)
    path = tmp_path / "run"
    manager.save(path)
    with safe_open(path, framework="pt") as opened:
        header = dict(opened.metadata())
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    manifest = json.loads(header["manifest"])
    del manifest["seeds_in_order"]
    text = json.dumps(manifest)
    old = {**header, "version": "1", "manifest": text, "sha256": _digest(text.encode())}
    save_file(tensors, path, metadata=old)
    again = SeedManager.load(
        path, fxgraft.trace(TwoTanh(), (X,)), blueprints={"Affine": lambda slot: Affine(0.0, 0.0)}
    )
    assert list(again.seeds) == ["a", "b", "c"]
    assert same_bits(again.host(X), expected([1, 2, 0]))


# Names


def test_a_name_that_was_given_is_never_made_again() -> None:
    manager = run()
    grown(manager, "Affine_at_act", 0)
    manager.cull("Affine_at_act")
    assert grown(manager, None, 1) == "Affine_at_act-2"
    grown(manager, "Affine_at_act-6", 2)
    manager.cull("Affine_at_act-6")
    assert grown(manager, None, 3) == "Affine_at_act-7"
    grown(manager, "Affine_at_act-008", 4)  # not a number that would be made: it stands in nobody's way
    assert manager.plan("act", affine(1)).name == "Affine_at_act-8" == grown(manager, None, 5)


def test_a_name_of_a_fossil_of_an_earlier_manager_is_not_made() -> None:
    manager = run()
    grown(manager, None, 0)
    manager.fossilize("Affine_at_act")
    other = SeedManager(manager.host, check_every=0)
    assert grown(other, None, 1) == "Affine_at_act-2"
    assert same_bits(manager.host(X), expected([0, 1]))


# A property: in step with a plain list


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("germinate"), st.sampled_from(["end", "before", "after", "both"]), st.integers(0, 99)
        ),
        st.tuples(st.just("cull"), st.just(""), st.integers(0, 99)),
        st.tuples(st.just("fossilize"), st.just(""), st.integers(0, 99)),
        st.tuples(st.sampled_from(["load", "copy"]), st.just(""), st.just(0)),
    ),
    max_size=10,
)


@given(actions=ACTIONS)
def test_any_course_is_that_of_a_plain_list(
    actions: list[tuple[str, str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    manager, model, fossils, born = run(), [], set(), 0
    for action, how, where in [("germinate", "end", 0), *actions]:
        if action == "germinate":
            first = where % (len(model) + 1)
            last = min(first + where // 10 % 3, len(model))
            options, place = {}, len(model)
            if how in ("before", "both") and last < len(model):
                options["before"], place = f"s{model[last]}", last
            if how in ("after", "both") and 0 < first <= place:
                options["after"] = f"s{model[first - 1]}"
                place = place if "before" in options else first
            # Names that sort in another order than they come.
            grown(manager, f"s{(born * 7) % 41}", (born * 7) % 41, **options)
            model.insert(place, (born * 7) % 41)
            born += 1
        elif action == "cull" and (live := [n for n in model if n not in fossils]):
            number = live[where % len(live)]
            manager.cull(f"s{number}")
            model.remove(number)
        elif action == "fossilize" and (live := [n for n in model if n not in fossils]):
            number = live[where % len(live)]
            manager.fossilize(f"s{number}")
            fossils.add(number)
        elif action == "load":
            path = tmp_path_factory.mktemp("order") / "run"
            manager.save(path)
            host = fxgraft.trace(TwoTanh(), (X,))
            blueprint = {"Affine": lambda slot: Affine(0.0, 0.0)}
            manager = SeedManager.load(path, host, blueprints=blueprint, check_every=0)
        elif action == "copy":
            assert same_bits(copy.deepcopy(manager.host)(X), expected(model))
        assert [p.seed for p in manager.host.structure.placements] == [f"s{n}" for n in model]
        assert same_bits(manager.host(X), expected(model))
