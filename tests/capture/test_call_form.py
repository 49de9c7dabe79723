"""The form of a call: what becomes an input, what is guarded, and that no other call gets through."""

from __future__ import annotations

import enum
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.capture._guarded_entry import entry_scope, entry_source
from fxgraft.capture.call_form import CallForm, is_constant
from fxgraft.util.bits import same_bits

X, Y = torch.randn(2, 3), torch.randn(2, 3)


def form_of(forward, *args, **kwargs):
    return CallForm(forward, args, kwargs)


def entry(form):
    """The guarded ``forward`` over a graph that returns its inputs, and a fallback that says so."""
    scope = {
        "_graph": lambda self, *inputs: ("graph", inputs),
        "_fallback": lambda self, *a, **k: ("fallback", a, k),
    }
    scope.update(entry_scope(form), _fell_back=lambda self, given: None)
    exec(entry_source(form), scope)
    return lambda *args, **kwargs: scope["forward"](nn.Module(), *args, **kwargs)


def takes(form, *args, **kwargs):
    """Whether a call of these arguments runs the graph; checks that the values arrive, or all arguments."""
    where, *given_values = entry(form)(*args, **kwargs)
    values = form.values(args, kwargs)
    if where == "graph":
        assert values is not None
        assert same_bits(list(given_values[0]), list(values.values()))
        return True
    passed = form.signature.bind(*given_values[0], **given_values[1])
    expected = form.signature.bind(*args, **kwargs)
    passed.apply_defaults()
    expected.apply_defaults()
    assert same_bits(dict(passed.arguments), dict(expected.arguments))
    return False


def names(form):
    return [known.name for known in form.inputs]


def plain(x):
    return x


def options(x, scale=1.0, *, flag=True, mask=None):
    return x


def variadic(x, *rest, **options):
    return x


def nested(batch, pair=(1, 2)):
    return batch


class Kind(enum.Enum):
    A = 1
    B = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@pytest.mark.parametrize(
    ("value", "constant"),
    [
        (1, True),
        (1.5, True),
        (None, True),
        ("s", True),
        (..., True),
        (torch.float32, True),
        (torch.device("cpu"), True),
        (torch.channels_last, True),
        (Kind.A, True),
        ((1, (2, "x")), True),
        ([1, None], True),
        (X, False),
        ((1, X), False),
        ({"a": 1}, False),
        (object(), False),
    ],
)
def test_constants(value, constant):
    assert is_constant(value) is constant


def test_a_plain_call_needs_no_guard():
    form = form_of(plain, X)
    assert form.is_plain
    assert names(form) == ["x"]
    assert takes(form, Y)
    assert takes(form, x=Y)


def test_constants_are_guarded_and_tensors_passed():
    form = form_of(options, X, 2.0, mask=Y)
    assert not form.is_plain
    assert names(form) == ["x", "mask"]
    assert takes(form, Y, 2.0, mask=X)
    assert takes(form, Y, scale=2.0, flag=True, mask=X)
    assert not takes(form, Y, 2.0)
    assert not takes(form, Y, 3.0, mask=X)
    assert not takes(form, Y, mask=X)
    assert not takes(form, Y, 2.0, flag=False, mask=X)


@pytest.mark.parametrize(
    ("recorded", "given_one"), list(product((1, 1.0, True, None, 0, False, "1"), repeat=2))
)
def test_equal_constants_of_other_types_are_told_apart(recorded, given_one):
    form = form_of(options, X, recorded)
    same = type(recorded) is type(given_one) and recorded == given_one
    assert takes(form, Y, given_one) is same


@pytest.mark.parametrize(
    "value", [torch.float64, torch.device("cpu"), Kind.B, Level.HIGH, (1, (2, "x")), [1, None], -3, 1j]
)
def test_kinds_of_constants(value):
    form = form_of(options, X, value)
    assert takes(form, Y, value)
    assert not takes(form, Y, 7)


def test_none_where_a_tensor_was_and_the_reverse():
    form = form_of(options, X)
    assert not takes(form, Y, mask=X)
    form = form_of(options, X, mask=X)
    assert not takes(form, Y, mask=None)


def test_variadic_arguments():
    form = form_of(variadic, X, Y, 3, key=Y, other=1)
    assert names(form) == ["x", "rest_0", "options__key"]
    assert takes(form, Y, X, 3, key=X, other=1)
    assert not takes(form, Y, X, 3, other=1, key=X), "code may ask for their order"
    assert not takes(form, Y, X, key=X, other=1)
    assert not takes(form, Y, X, 3, Y, key=X, other=1)
    assert not takes(form, Y, X, 3, key=X)
    assert not takes(form, Y, X, 3, key=X, other=1, more=1)
    assert not takes(form, Y, X, 4, key=X, other=1)
    assert not takes(form_of(variadic, X), Y, key=1)


def test_nested_structures():
    form = form_of(nested, {"a": X, "b": [Y, (X, 1)]})
    assert len(form.inputs) == 3
    assert len(set(names(form))) == 3
    assert takes(form, {"a": Y, "b": [X, (Y, 1)]})
    assert not takes(form, {"a": Y, "b": [X, (Y, 2)]})
    assert not takes(form, {"a": Y, "b": [X, [Y, 1]]})
    assert not takes(form, {"a": Y, "b": [X]})
    assert not takes(form, {"b": [X, (Y, 1)], "a": Y}), "the order of keys may matter to the code"
    assert not takes(form, {"a": Y})
    assert not takes(form, [Y])


def test_names_of_inputs_do_not_collide():
    def forward(x, x_0):
        return x

    form = form_of(forward, (X, 1), X)
    assert len(set(names(form))) == len(form.inputs) == 2
    assert takes(form, (Y, 1), Y)


DEFAULTS = (Level.LOW, 1.5, Kind.A, (1, 2), "s", None, True, torch.float32, object())


@pytest.mark.parametrize("default", DEFAULTS)
def test_defaults_survive(default):
    def forward(x, option=default):
        return x

    form = form_of(forward, X, option=1) if not is_constant(default) else form_of(forward, X)
    assert takes(form, Y) is is_constant(default)


def test_what_the_caller_passed_by_position_is_passed_so():
    form = form_of(options, X, 2.0, flag=False)
    assert form.bind({"x": Y}) == ((Y, 2.0), {"flag": False})
    assert entry(form)(Y, 3.0, flag=False)[1:] == ((Y, 3.0), {"flag": False, "mask": None})


leaves = st.one_of(
    st.just(X), st.just(Y), st.integers(-2, 2), st.none(), st.booleans(), st.sampled_from(["a", 1.5])
)
structures = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(["k", "l", "a b"]), inner, max_size=2),
    ),
    max_leaves=6,
)


@given(
    args=st.lists(structures, max_size=2),
    kwargs=st.dictionaries(st.sampled_from("yz"), structures, max_size=2),
)
def test_bind_is_the_inverse_of_values(args, kwargs):
    form = form_of(variadic, X, *args, **kwargs)
    values = form.values((X, *args), kwargs)
    assert values is not None
    assert list(values) == names(form)
    bound_args, bound_kwargs = form.bind(values)
    assert same_bits([*bound_args], [X, *args])
    assert same_bits(bound_kwargs, kwargs)
    assert takes(form, X, *args, **kwargs)


@given(recorded=structures, given_one=structures)
def test_guards_and_values_agree(recorded, given_one):
    form = form_of(nested, recorded)
    assert takes(form, given_one) is (form.values((given_one,), {}) is not None)


def test_a_call_that_does_not_fit_the_signature():
    form = form_of(plain, X)
    assert form.values((X, X), {}) is None
    assert form.values((), {"z": X}) is None


def test_annotations_do_not_get_into_the_code():
    def forward(x: Tensor, scale: NoSuchName = 2) -> NoSuchName:  # noqa: F821
        return x

    assert takes(form_of(forward, X), Y)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x, mask=None, *more, scale=2.0, **kwargs):
        return self.layer(x) * scale if mask is None else self.layer(x) * mask


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((X, Y), {}, "mask is None"),
        ((X,), {"scale": 3.0}, "scale == 2.0"),
        ((X, None, Y), {}, "len(more) == 0"),
        ((X, None, Y), {"scale": 3.0}, "len(more) == 0"),
        ((X,), {"other": 1}, "list(kwargs) == []"),
    ],
)
def test_a_call_of_another_form_is_told_with_what_was_expected(args, kwargs, expected, caplog):
    host = fxgraft.trace(Masked(), (X,))
    fxgraft.SeedManager(host).germinate("layer", "mlp")
    model = fxgraft.unwrap(fxgraft.trace(Masked(), (X,)))
    model.load_state_dict(host.model_state())
    for _ in range(2):
        assert same_bits(host(*args, **kwargs), model(*args, **kwargs))
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"than in the example call of fxgraft.trace (expected {expected}; got " in said
    assert host.explain().fallbacks == 2


class Positional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x, mask=None, /, scale=2.0):
        return self.layer(x) * (scale if mask is None else mask)


def test_what_can_only_be_passed_by_position_is() -> None:
    model = Positional()
    host = fxgraft.trace(model, (X,))
    fxgraft.SeedManager(host).germinate("layer", "mlp")
    assert same_bits(host(X, Y), model(X, Y))
    assert same_bits(host(X, None, 3.0), model(X, None, scale=3.0))
