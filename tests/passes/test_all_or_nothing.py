"""Each pass changes a module as a whole or not at all; and what it leaves can be copied and pickled."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
import torch.fx as fx
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxgraft_passes
from fxgraft_passes import (
    Cull,
    FindChannels,
    FindSlots,
    Fossilize,
    Germinate,
    Phase,
    SplitEdge,
    Verify,
    Widen,
)
from fxgraft_passes.base import GraphPass
from fxgraft_passes.errors import ChannelError, FxGraftError, SlotError
from tests.harness import assert_same_bits
from tests.passes.graphs import state_of

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
ALL = {one for one in vars(fxgraft_passes).values() if isinstance(one, type) and issubclass(one, GraphPass)}


def plain() -> fx.GraphModule:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    found = fx.symbolic_trace(net.eval())
    FindSlots(example_args=(X,))(found)
    return found


def germinated() -> fx.GraphModule:
    found = plain()
    for name in ("a", "b"):
        Germinate("_1", name, nn.Linear(8, 8), phase=Phase.BLENDED)(found)
        found.get_submodule(f"_seeds.{name}").alpha.fill_(0.5)
    return found


CASES: dict[str, tuple[Callable[[], fx.GraphModule], GraphPass]] = {
    "find slots": (plain, FindSlots(example_args=(X,))),
    "find channels": (plain, FindChannels((X,))),
    "widen": (plain, Widen("0", 2, (X,))),
    "germinate": (plain, Germinate("_1", "a", nn.Linear(8, 8))),
    "germinate another": (germinated, Germinate("_1", "c", nn.Linear(8, 8), before="b")),
    "split edge": (plain, SplitEdge("_0", "_1")),
    "fossilize": (germinated, Fossilize("a", alpha=0.5)),
    "cull": (germinated, Cull("a")),
    "verify": (germinated, Verify()),
}


def test_all_passes_are_here() -> None:
    assert {type(each) for _, each in CASES.values()} == ALL - {GraphPass}


class Injected(BaseException):
    """No error that any code catches."""


@contextmanager
def failing_at(call: int) -> Iterator[list[int]]:
    """The so manieth call of a function of a pass, or of torch.fx as it swaps a graph in, raises inside.

    Yields:
        The number of calls.
    """
    count = [0]

    def see(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and _is_of_pass(frame):
            count[0] += 1
            if count[0] == call:
                raise Injected

    sys.setprofile(see)
    try:
        yield count
    finally:
        sys.setprofile(None)


_BACK = ("_all_or_nothing", "untouched", "snapshot", "saved", "subject", "devices", "observe")
"""What puts things back: it is not made to fail."""


def _is_of_pass(frame: FrameType) -> bool:
    if frame.f_code.co_flags & inspect.CO_GENERATOR:  # it may be closed, where nobody can catch anything
        return False
    name = frame.f_globals.get("__name__", "")
    if name.startswith("fxgraft_passes"):
        return not any(part in name for part in _BACK)
    return name in ("torch.fx.graph_module", "torch.fx.graph")


def everything(module: fx.GraphModule) -> dict[str, Any]:
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    shapes = {name: getattr(part, "out_features", None) for name, part in module.named_modules()}
    return {**state_of(module), "tensors": tensors, "sizes": shapes, "out": module(X).detach()}


@pytest.mark.parametrize("case", CASES)
@given(share=st.floats(0, 1))
def test_a_pass_that_fails_anywhere_changes_nothing(case: str, share: float) -> None:
    make, each = CASES[case]
    module = make()
    before, graph, forward = everything(module), module.graph, type(module).forward
    try:
        with failing_at(1 + int(share * (_calls(case) - 1))):
            each(module)
        return  # rarely: other tests have filled a cache meanwhile
    except Injected:
        pass
    assert module.graph is graph
    assert type(module).forward is forward
    assert_same_bits(everything(module), before)
    each(module)


@functools.cache
def _calls(case: str) -> int:
    """The fewest calls that the pass makes; what is cached in the process may save some of them."""
    make, each = CASES[case]
    found = []
    for _ in range(3):
        module = make()
        with failing_at(0) as count:
            each(module)
        found.append(count[0])
    return min(found)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["copied", "pickled"]
)
def test_what_a_pass_leaves_can_be_copied(case: str, copied: Callable[[Any], Any]) -> None:
    make, each = CASES[case]
    module = make()
    each(module)
    other = copied(module)
    assert_same_bits(other(X), module(X))
    assert set(other.state_dict()) == set(module.state_dict())
    for graft in ("a", "b"):
        Cull(graft)(module)
        Cull(graft)(other)
    assert_same_bits(other(X), module(X))


def test_channels_of_copies() -> None:
    module = plain()
    FindChannels((X,))(module)
    assert list(fxgraft_passes.channels_of(copy.deepcopy(module))) == list(fxgraft_passes.channels_of(module))
    with pytest.raises(FxGraftError, match="expected a GraphModule that FindChannels has looked at"):
        fxgraft_passes.channels_of(pickle.loads(pickle.dumps(module)))


EXAMPLES: dict[str, tuple[Any, str]] = {
    "a tensor": (X, r"expected the arguments of one call as a tuple, \(x,\); got a tensor of shape \(3, 4\)"),
    "a list": ([X], "as a tuple.*got list"),
    "another shape": (
        (torch.randn(3, 5),),
        r"forward\(input\); got \(a float32 tensor of shape \(3, 5\)\), with which it raised RuntimeError",
    ),
    "too many": ((X, X), r"forward\(input\); got .* with which it raised TypeError"),
    "none": ((), r"forward\(input\); got \(\), with which it raised TypeError"),
}


@pytest.mark.parametrize(("given", "told"), EXAMPLES.values(), ids=list(EXAMPLES))
@pytest.mark.parametrize(
    "make", [FindSlots, FindChannels, lambda given: Widen("0", 2, given)], ids=["slots", "channels", "widen"]
)
def test_an_example_that_is_none_is_refused(make: Callable[[Any], GraphPass], given: Any, told: str) -> None:
    module = plain()
    before, graph = everything(module), module.graph
    with pytest.raises(
        (SlotError, ChannelError), match=f"example_args of (FindSlots|FindChannels|Widen): .*{told}"
    ):
        make(given)(module)
    assert module.graph is graph
    assert_same_bits(everything(module), before)


@pytest.mark.parametrize("name", ["class", "None", "import"])
def test_a_name_that_code_cannot_have_is_refused(name: str) -> None:
    module = plain()
    before, graph = everything(module), module.graph
    with pytest.raises(
        SlotError, match=rf"seed '{name}' at node '_1': .* got '{name}'.*path='_seeds.{name}_'"
    ):
        Germinate("_1", name, nn.Linear(8, 8))(module)
    assert module.graph is graph
    assert_same_bits(everything(module), before)
    Germinate("_1", name, nn.Linear(8, 8), path=f"_seeds.{name}_")(module)
    Cull(name)(module)
    assert_same_bits(everything(module), before)
