"""What comes from outside is read in one place: it says where, what was expected, and what was given."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxgraft.commands import SEED
from fxgraft.seeds.config import SeedConfig
from fxgraft.util.reading import InvalidDataError, decode, read


@dataclass(frozen=True)
class Inner:
    steps: int = field(metadata={"minimum": 1})
    share: float = field(default=0.5, metadata={"minimum": 0, "maximum": 1})


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner | None = None
    kind: str = field(default="a", metadata={"enum": ["a", "b"]})
    at: str | list[int] | None = None
    rest: dict[str, Any] = field(default_factory=dict)
    pair: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.name == "":
            raise ValueError("name: expected a text; got none")


def test_an_object_is_made_of_those_in_it() -> None:
    data = {
        "name": "x",
        "inner": {"steps": 2.0, "share": 1},
        "at": [1.0, 2],
        "rest": {"x": 2.0},
        "pair": [3, 4],
    }
    found = read(data, Outer)
    assert found == Outer("x", Inner(2, 1.0), at=[1, 2], rest={"x": 2.0}, pair=(3, 4))
    assert type(found.rest["x"]) is float


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "It: name missing"),
        ([], r"It: expected an object with fields; got \[\]"),
        ({"name": 1}, "It.name: expected string; got 1"),
        ({"name": "x", "nam": 1}, r"It: expected at, inner, kind, name, pair, rest; got \['nam'\]"),
        ({"name": "x", "inner": {"steps": 0}}, "It.inner.steps: expected 1 or more; got 0"),
        ({"name": "x", "inner": {"steps": True}}, "It.inner.steps: expected integer; got True"),
        ({"name": "x", "inner": {"steps": 2.5}}, "It.inner.steps: expected integer; got 2.5"),
        ({"name": "x", "inner": {"steps": 1, "share": 7}}, "It.inner.share: expected 0 to 1; got 7"),
        ({"name": "x", "inner": {"steps": 1, "share": math.nan}}, "It.inner.share: expected 0 to 1; got nan"),
        ({"name": "x", "inner": {"step": 1}}, r"It.inner: expected share, steps; got \['step'\]"),
        ({"name": "x", "inner": {}}, "It.inner: steps missing"),
        ({"name": "x", "inner": 3}, "It.inner: expected object or null; got 3"),
        ({"name": "x", "kind": "c"}, r"It.kind: expected one of \['a', 'b'\]; got 'c'"),
        ({"name": "x", "at": [1, "b"]}, r"It.at\[1\]: expected integer; got 'b'"),
        ({"name": "x", "at": {}}, "It.at: expected string or array or null; got {}"),
        ({"name": ""}, "It: name: expected a text; got none"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(data: Any, says: str) -> None:
    with pytest.raises(InvalidDataError, match=f"^{says}$"):
        read(data, Outer, "It")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NEAR = st.fixed_dictionaries(
    {"name": st.just("x")}, optional={f.name: JSON for f in dataclasses.fields(Outer) if f.name != "name"}
)


@given(NEAR | JSON)
def test_anything_is_read_or_refused_with_its_place(data: Any) -> None:
    said = ""
    try:
        assert isinstance(read(data, Outer, "It"), Outer)
    except InvalidDataError as error:
        said = str(error)
    assert said == "" or said.startswith("It")


NOT_JSON = ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", '{"a": 1, "a": 2}', "{", b"\xff"]


@pytest.mark.parametrize("text", NOT_JSON)
def test_what_only_python_takes_for_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidDataError):
        decode(text)


def test_a_command_is_the_part_of_a_seeds_description_that_is_data() -> None:
    described = {f.name: f.default for f in dataclasses.fields(SeedConfig)}
    commanded = {f.name: f.default for f in dataclasses.fields(SEED) if f.name != "id"}
    assert commanded.items() <= described.items()
    assert described.keys() - commanded.keys() == {"objective", "hyper", "optimizer", "groups"}
