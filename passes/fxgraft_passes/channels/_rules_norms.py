"""Normalisations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fxgraft_passes.channels._analysis import NORM, Analysis, Normed
from fxgraft_passes.channels._rules_table import given, one, rule, tensor
from fxgraft_passes.channels.layout import Atom, Layout, Product, beware, fix, unify
from fxgraft_passes.channels.recording import Operation


@rule("layer_norm rms_norm")
def over_the_last(a: Analysis, operation: Operation) -> None:
    """Over the last dimensions, with a weight and a bias for each of their places."""
    x, shape = tensor(operation, 0, "input"), given(operation, 1, "normalized_shape")
    is_layer = getattr(operation.target, "__name__", "") == "layer_norm"
    weight = given(operation, 2, "weight", None)
    bias = given(operation, 3, "bias", None) if is_layer else None
    count = 1 if isinstance(shape, int) else len(shape)
    for value in (weight, bias):
        if isinstance(value, Tensor):
            for ours, theirs in zip(a.of(value), a.of(x)[-count:], strict=True):
                unify(ours, theirs, operation.name)
            a.role(value, 0, "norm")
    for layout in a.of(x)[-count:]:
        beware(layout, NORM, operation.name)
        if count > 1:
            fix(layout, f"{operation.name} is computed over {count} dimensions")
    own, off = (None if (found := a.weight(value)) is None else found.path for value in (weight, bias))
    a.norms.append(Normed("layer" if is_layer else "rms", operation.module, own, off, a.of(x)[-1]))
    a.make(operation, one(operation), a.of(x))


@rule("batch_norm instance_norm")
def by_channel(a: Analysis, operation: Operation) -> None:
    """Each channel by itself."""
    x = tensor(operation, 0, "input")
    for place, name in ((1, "running_mean"), (2, "running_var"), (3, "weight"), (4, "bias")):
        _by_channel(a, operation, given(operation, place, name, None), a.of(x)[1])
    a.make(operation, one(operation), a.of(x))


@rule("group_norm")
def by_group(a: Analysis, operation: Operation) -> None:
    """Groups of channels, each by itself: whole groups can grow."""
    x, groups = tensor(operation, 0, "input"), int(given(operation, 1, "num_groups"))
    inner = Atom(x.shape[1] // groups)
    if inner.size != 1:
        fix(inner, f"{operation.name} is computed over each group")
    group: Layout = Atom(groups)
    if groups == 1:
        fix(a.of(x)[1], f"{operation.name} is computed over it")
    unify(a.of(x)[1], Product((group, inner)), operation.name)
    for place, name in ((2, "weight"), (3, "bias")):
        _by_channel(a, operation, given(operation, place, name, None), a.of(x)[1])
    a.make(operation, one(operation), a.of(x))


def _by_channel(a: Analysis, operation: Operation, value: Any, layout: Layout) -> None:
    if isinstance(value, Tensor):
        unify(a.of(value)[0], layout, operation.name)
        a.role(value, 0, "norm")
