"""Constants of a call are compared with their types of numbers and signs of zeros."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.capture.facts import Self, Written, equals, steps_to
from fxgraft.capture.shadowing import builtins_of, unshadowed
from fxgraft.util.bits import same_bits
from tests.harness import counting_backend

numbers = st.sampled_from([0, 1, 2, 0.0, -0.0, 1.0, 2.0, math.inf, math.nan, True, False, 1j, 2 + 0j])
atoms = numbers | st.sampled_from([None, "1", "a", torch.float32, torch.device("cpu")])
containers = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "b", 1, 2.0]), inner, max_size=2)
    ),
    max_leaves=6,
) | st.sets(st.sampled_from([0, 1, 2.0, 3.5, "a"]), max_size=3)


def holds(value: Any, given_one: Any) -> bool:
    names: dict[str, Any] = {}

    def name_of(known: Any) -> str:
        names[f"_{len(names)}"] = known
        return f"_{len(names) - 1}"

    return bool(eval(equals(Written("x"), (), value).source(name_of), names, {"x": given_one}))


@given(a=containers, b=containers)
def test_it_holds_for_what_prints_alike(a: Any, b: Any) -> None:
    assert holds(a, a) or "nan" in repr(a), "a call with NaN in a container may fall back"
    assert not holds(a, b) or canonical(a) == canonical(b)


def canonical(value: Any) -> str:
    """What it prints, in one order."""
    if isinstance(value, set):
        return f"set {sorted(map(repr, value))}"
    if isinstance(value, dict):
        return f"dict {sorted((repr(key), canonical(item)) for key, item in value.items())}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} {list(map(canonical, value))}"
    return repr(value)


def test_people_are_told_the_equality_alone() -> None:
    fact = equals(Self(), (("attr", "size"),), (2, 0.5))
    assert fact.said == "self.size == (2, 0.5)"
    assert fact.below(steps_to("block.0")).said == "getattr(self.block, '0').size == (2, 0.5)"


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


class Constants(nn.Module):
    """Results that show the type of each constant, and the sign of its zero."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.items, self.table, self.members, self.zero = [3], {"a": 2}, {4}, 0.0

    def forward(self, x: Tensor, i: Tensor, sizes: Any = (2,), zero: float = 0.0) -> tuple[Tensor, ...]:
        i = i * sizes[0] * self.items[0] * self.table["a"] * max(self.members)
        return torch.relu(self.lin(x)), i, torch.ones(1) / zero, torch.ones(1) / self.zero


def grown(model: nn.Module, *example: Tensor) -> fxgraft.Host:
    host = fxgraft.trace(model, example)
    fxgraft.SeedManager(host, check_every=0).germinate("relu", lambda slot: Zero())
    return host


X, INDICES = torch.linspace(-1, 1, 8).view(2, 4), torch.arange(4)


@pytest.mark.parametrize("changed", [{"sizes": (2.0,)}, {"sizes": (True,)}, {"sizes": [2]}, {"zero": -0.0}])
def test_an_argument_that_only_equals_the_traced_one_is_another_form(changed: dict[str, Any]) -> None:
    model = Constants()
    host = grown(model, X, INDICES)
    assert all(map(same_bits, host(X, INDICES), model(X, INDICES)))
    assert host.explain().fallbacks == 0
    assert all(map(same_bits, host(X, INDICES, **changed), model(X, INDICES, **changed)))
    assert host.explain().fallbacks == 1


@pytest.mark.parametrize(
    ("name", "value"), [("items", [3.0]), ("table", {"a": 2.0}), ("members", {4.0}), ("zero", -0.0)]
)
def test_an_attribute_that_only_equals_the_traced_one_is_another_form(name: str, value: Any) -> None:
    model = Constants()
    host = grown(model, X, INDICES)
    for module in (host, model):
        setattr(module, name, value)
    assert all(map(same_bits, host(X, INDICES), model(X, INDICES)))


class Hiding(nn.Module):
    """Parameters with the names of what conditions call."""

    def forward(
        self,
        x: Tensor,
        type: float = 1.0,
        len: Any = (),
        all: Any = (1, 2),
        float: Any = 2.5,
        list: Any = None,
    ) -> Tensor:
        return torch.relu(x) * type * all[0] * float


def test_parameters_may_have_names_of_pythons_own() -> None:
    model = Hiding()
    host = grown(model, X)
    assert same_bits(host(X), model(X))
    assert host.explain().fallbacks == 0, "its seeds run"
    changes: list[dict[str, Any]] = [
        {"type": 2.0},
        {"all": (1, 2.0)},
        {"float": 3.5},
        {"len": (1,)},
        {"list": [1]},
    ]
    for number, changed in enumerate(changes, 1):
        assert same_bits(host(X, **changed), model(X, **changed)), changed
        assert host.explain().fallbacks == number
    assert host.explain().root.guards[:2] == ("type == 1.0", "len == ()")


@given(name=st.sampled_from(["type", "len", "all", "x"]))
def test_only_what_is_hidden_gets_another_name(name: str) -> None:
    condition = f"(type({name}) is float and len({name}.shape) == 2 and all(i is not None for i in {name}))"
    renamed = unshadowed(condition, [name])
    assert (renamed == condition) == (name == "x")
    assert set(builtins_of([name])) == ({f"_builtin_{name}"} - {"_builtin_x"})
    assert renamed.count(f"_builtin_{name}") == (name != "x")


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_code_takes_such_conditions_in_one_graph(dynamic: bool | None, fresh_compiler: None) -> None:
    model = Constants()
    host = fxgraft.trace(model, (X, INDICES))
    host.compile(backend=(backend := counting_backend()), dynamic=dynamic, fullgraph=True)
    assert all(map(same_bits, host(X, INDICES), model(X, INDICES)))
    with torch.no_grad():
        found = host(X, INDICES, sizes=(2.0,))
    assert found[1].dtype == torch.float32
    assert backend.frame_count >= 2
