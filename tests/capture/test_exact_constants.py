"""Constants of a call are compared with their types of numbers and signs of zeros."""

from __future__ import annotations

import enum
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.capture._exact import builtins_of, unshadowed
from fxgraft.capture._facts import Self, Written, equals, steps_to
from fxgraft.util.bits import same_bits
from tests.harness import counting_backend


class Level(enum.IntEnum):
    ONE = 1
    TWO = 2


class Mode(enum.StrEnum):
    A = "a"


numbers = st.sampled_from([0, 1, 2, 0.0, -0.0, 1.0, 2.0, math.inf, math.nan, True, False, 1j, 2 + 0j])
complex_zeros = st.sampled_from([0j, complex(-0.0, 0), complex(0, -0.0), complex(-0.0, -0.0)])
of_classes = st.sampled_from([*Level, *Mode, np.float64(1), np.float64(2)])
atoms = (
    numbers
    | complex_zeros
    | of_classes
    | st.sampled_from([None, "1", "a", torch.float32, torch.device("cpu")])
)
containers = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "b", 1, 2.0, 1.0, True, *Level, *Mode]), inner, max_size=2)
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
    """What it prints, in one order where order says nothing."""
    if isinstance(value, set):
        return f"set {sorted(map(repr, value))}"
    if isinstance(value, dict):
        return f"dict {[(repr(key), canonical(item)) for key, item in value.items()]}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} {list(map(canonical, value))}"
    return repr(value)


def test_people_are_told_the_equality_alone() -> None:
    fact = equals(Self(), (("attr", "size"),), (2, 0.5))
    assert fact.said == "self.size == (2, 0.5)"
    assert fact.below(steps_to("block.0")).said == "getattr(self.block, '0').size == (2, 0.5)"


class Share:
    """Holds a number."""

    def __init__(self, value: float) -> None:
        self.value = value


class Iterating(nn.Module):
    """Iterates over a dictionary of objects that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = {"a": Share(1.0), "b": Share(2.0)}

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * sum(share.value for share in self.shares.values())


def test_people_are_told_of_keys_what_they_equal() -> None:
    guards = fxgraft.trace(Iterating(), (torch.ones(2),)).explain().root.guards
    assert "list(self.shares) == ['a', 'b']" in guards


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


class Open(nn.Module):
    """Results that show the order, the types and the names of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.weights = {"a": 1.0, "b": 2.0}

    def forward(self, x: Tensor, table: Any = None, modes: Any = (), **more: Tensor) -> Tensor:
        h = torch.relu(self.lin(x))
        for place, value in enumerate([*self.weights.values(), *more.values()], 1):
            h = h + place * value
        for key, value in (table or {}).items():
            h = h + len(repr(type(key))) * value
        return h * (2 if any(isinstance(mode, enum.Enum) for mode in modes) else 1)


@pytest.mark.parametrize(
    ("example", "changed"),
    [
        ({"a": X, "b": -X}, {"b": -X, "a": X}),
        ({"table": {1: X}}, {"table": {1.0: X}}),
        ({"table": {1: X}}, {"table": {Level.ONE: X}}),
        ({"table": {Level.ONE: X}}, {"table": {1: X}}),
        ({"table": {"a.b": X, "a_b": -X, "a-b": X}}, {"table": {"a.b": X, "a-b": X, "a_b": -X}}),
        ({"modes": ["a"]}, {"modes": [Mode.A]}),
        ({"modes": [Mode.A]}, {"modes": ["a"]}),
        ({"modes": [Level.ONE]}, {"modes": [1]}),
        ({"modes": (0j,)}, {"modes": (complex(0, -0.0),)}),
        ({"modes": [float("inf"), torch.float32]}, {"modes": [float("inf"), torch.float64]}),
    ],
)
def test_order_and_classes_of_arguments_are_conditions(example: Any, changed: Any) -> None:
    model = Open()
    host = fxgraft.trace(model, (X,), example)
    fxgraft.SeedManager(host, check_every=0).germinate("relu", lambda slot: Zero())
    assert same_bits(host(X, **example), model(X, **example))
    assert host.explain().fallbacks == 0, "its seeds run"
    assert same_bits(host(X, **changed), model(X, **changed))
    assert host.explain().fallbacks == 1


def test_an_attribute_in_another_order_is_another_form() -> None:
    model = Open()
    host = grown(model, X)
    model.weights = host.weights = {"b": 2.0, "a": 1.0}
    assert same_bits(host(X), model(X))


class Asked:
    """An argument with fields that code compares with constants."""

    def __init__(self, mode: Any, sizes: Any):
        self.mode, self.sizes = mode, sizes


class OfFields(nn.Module):
    def forward(self, x: Tensor, asked: Asked) -> Tensor:
        h = torch.relu(x) * (2 if isinstance(asked.mode, Mode) else 1)
        return h * (3 if isinstance(asked.sizes[0], float) else 1)


def test_fields_of_arguments_are_compared_likewise() -> None:
    model, example = OfFields(), Asked("a", (1,))
    host = grown(model, X, example)  # type: ignore[arg-type]
    assert same_bits(host(X, example), model(X, example))
    assert host.explain().fallbacks == 0
    for changed in (Asked(Mode.A, (1,)), Asked("a", (1.0,))):
        assert same_bits(host(X, changed), model(X, changed))


class OfNumPy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = np.float64(2)

    def forward(self, x: Tensor, power: Any = 3.0) -> Tensor:
        return torch.relu(x) * self.scale * power


def test_numbers_of_numpy_in_attributes_and_arguments() -> None:
    model, three = OfNumPy(), np.float64(3)
    host = grown(model, X, three)  # type: ignore[arg-type]
    assert same_bits(host(X, three), model(X, three))
    assert host.explain().fallbacks == 0, "its seeds run"
    assert same_bits(host(X, np.float64(4)), model(X, np.float64(4)))
    model.scale = host.scale = np.float64(5)
    assert same_bits(host(X, three), model(X, three))


class WithSelf(nn.Module):
    def forward(this, x: Tensor, /, self: float = 1.0) -> Tensor:  # noqa: N805
        return torch.relu(x) * self


def test_a_parameter_with_the_name_of_generated_code_is_refused_by_name() -> None:
    host = fxgraft.trace(WithSelf(), (X,))
    with pytest.raises(fxgraft.errors.SlotError, match="parameter named 'self'"):
        fxgraft.SeedManager(host).germinate("relu", lambda slot: Zero())
    assert same_bits(host(X), WithSelf()(X))


class KeyedResult(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[Level, Tensor]:
        return {Level.ONE: torch.relu(self.lin(x))}


def test_a_result_with_keys_that_have_no_literal_is_no_graph() -> None:
    model = KeyedResult()
    host = fxgraft.trace(model, (X,))
    assert "makes a dictionary with the key <Level.ONE: 1>" in host.rejected[""]
    fxgraft.SeedManager(host, check_every=0).germinate("lin", lambda slot: Zero())
    assert same_bits(host(X)[Level.ONE], model(X)[Level.ONE])


class SelfOrCross(nn.Module):
    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.relu(q) * (2 if q is k else 1) + k


class SelfAndCross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_itself, self.to_other = SelfOrCross(), SelfOrCross()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + 1
        return self.to_other(self.to_itself(x, x), y)


def test_arguments_that_are_compared_by_identity() -> None:
    model = SelfAndCross()
    host = fxgraft.trace(model, (X, -X))
    manager = fxgraft.SeedManager(host, check_every=0)
    for name in ("to_itself", "to_other"):
        manager.germinate(f"{name}.relu", lambda slot: Zero())
    assert same_bits(host(X, -X), model(X, -X))
    assert host.explain().fallbacks == 0, "its seeds run"
    other, same = SelfOrCross(), fxgraft.trace(SelfOrCross(), (X, -X))
    fxgraft.SeedManager(same, check_every=0).germinate("relu", lambda slot: Zero())
    for k in (X, X.clone()):
        assert same_bits(same(X, k), other(X, k))
    assert same.explain().fallbacks == 1
