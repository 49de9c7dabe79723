"""A snapshot sees every change of what its roots hold, at any depth, and puts it back."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxgraft_passes.snapshot import Snapshot


class Counter:
    """An object whose class holds a variable."""

    calls = 0


class Own(nn.Module):
    """A module with registers, attributes, and whatever else it is given."""

    def __init__(self, held: Any):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))
        self.register_buffer("mean", torch.zeros(2))
        self.inner, self.held = nn.Linear(2, 2), held


LEAVES = st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none(), st.builds(Counter))


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=3)
    named = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    return st.one_of(
        lists,
        lists.map(deque),
        named,
        named.map(OrderedDict),
        named.map(lambda held: SimpleNamespace(**held)),
        st.sets(st.integers(), max_size=3),
        inner.map(Own),
        st.builds(lambda n: torch.arange(float(n)), st.integers(0, 3)),
    )


OBJECTS = st.recursive(LEAVES, _containers, max_leaves=12)


def state(value: Any) -> Any:
    """All that can be seen of a value, as plain data."""
    if isinstance(value, torch.Tensor):
        return "tensor", id(value), value.requires_grad, value.tolist()
    if isinstance(value, (list, deque)):
        return type(value), id(value), [state(item) for item in value]
    if isinstance(value, set):
        return type(value), id(value), sorted(value)
    if isinstance(value, dict):
        return type(value), id(value), [(key, state(item)) for key, item in value.items()]
    if hasattr(value, "__dict__"):
        return type(value), id(value), [(name, state(item)) for name, item in vars(value).items()]
    return repr(value)


def _reached(value: Any) -> list[Any]:
    """Everything inside of ``value`` that can be written to."""
    if isinstance(value, (set, torch.Tensor)):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, deque)) else ()
    held = vars(value).values() if hasattr(value, "__dict__") else ()
    own = [value] if isinstance(value, (dict, list, deque)) or hasattr(value, "__dict__") else []
    return own + [found for item in (*inside, *held) for found in _reached(item)]


def _write(target: Any, choice: random.Random) -> None:
    """Change ``target`` in one of the ways in which a forward can."""
    new = object() if choice.random() < 0.5 else 7
    if isinstance(target, torch.Tensor):
        target.data.add_(1)
        if not target.numel():
            target.requires_grad_(not target.requires_grad)
    elif isinstance(target, set):
        target ^= {10**9}
    elif isinstance(target, (list, deque)):
        target.append(new) if choice.random() < 0.5 or not target else target.pop()
    elif isinstance(target, dict):
        if target and choice.random() < 0.5:
            del target[choice.choice(list(target))]
        else:
            target["new"] = new
    else:
        held = vars(target)
        name = choice.choice(sorted(held)) if held and choice.random() < 0.5 else "new"
        held[name] = new


@given(OBJECTS, st.randoms(use_true_random=False), st.integers(1, 4))
def test_whatever_is_written_is_seen_and_put_back(held: Any, choice: random.Random, writes: int) -> None:
    root = Own(held)
    snapshot, before = Snapshot([root]), state(root)
    assert not list(snapshot.changes())
    for _ in range(writes):
        _write(choice.choice(_reached(root)), choice)
    if state(root) != before:
        assert list(snapshot.changes())
    snapshot.restore()
    assert state(root) == before
    assert not list(snapshot.changes())


@pytest.mark.parametrize("first", ["the class", "an object"])
def test_a_class_that_is_an_attribute_too(first: str) -> None:
    """Its variables are put back, whether the class or an object of it is found first."""

    class Seen:
        calls = 0

    module = nn.Module()
    names = {"the class": Seen, "an object": Seen()}
    for name in sorted(names, key=lambda name: name != first):
        setattr(module, name.replace(" ", "_"), names[name])
    snapshot = Snapshot([module])
    Seen.calls += 1
    snapshot.restore()
    assert Seen.calls == 0
