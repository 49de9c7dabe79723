"""Operations that take items and parts of dimensions, by numbers, slices and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxgraft_passes.channels._analysis import Analysis
from fxgraft_passes.channels._rules_table import Unknown, given, one, rule, tensor
from fxgraft_passes.channels.layout import Atom, Concat, Layout, fix, size_of, unify
from fxgraft_passes.channels.recording import Operation

_MASKS = (torch.bool, torch.uint8)


@rule("select narrow")
def selected(a: Analysis, operation: Operation) -> None:
    """One item, or a part, of a dimension."""
    source, result = operation.args[0], one(operation)
    dim = int(given(operation, 1, "dim")) % source.dim()
    if result.dim() == source.dim():
        start = given(operation, 2, "start")
        if not isinstance(start, int):
            raise Unknown("start")
        cut_out = _part(a, operation, a.of(source)[dim], start % source.shape[dim], result.shape[dim])
        a.make(operation, result, [cut_out if i == dim else own for i, own in enumerate(a.of(source))])
        return
    fix(a.of(source)[dim], _by_number(operation))
    a.make(operation, result, [layout for i, layout in enumerate(a.of(source)) if i != dim])


@rule("index_select")
def selected_by_tensor(a: Analysis, operation: Operation) -> None:
    """Items of a dimension, by a tensor of numbers."""
    source = tensor(operation, 0, "input")
    dim = int(given(operation, 1, "dim")) % source.dim()
    fix(a.of(source)[dim], _by_number(operation))
    layouts = [None if i == dim else layout for i, layout in enumerate(a.of(source))]
    a.make(operation, one(operation), layouts)


@rule("__getitem__")
def item(a: Analysis, operation: Operation) -> None:
    """Parts and items by numbers, slices, lists, masks and tensors."""
    source, key = operation.args
    keys = [_as_tensor(k) for k in (key if isinstance(key, tuple) else [key])]
    real = sum(_read(k) for k in keys if k is not Ellipsis)
    place = next((i for i, k in enumerate(keys) if k is Ellipsis), None)
    fill = [slice(None)] * (source.dim() - real)
    keys = [*keys, *fill] if place is None else [*keys[:place], *fill, *keys[place + 1 :]]
    a.make(operation, one(operation), _picked(a, operation, list(a.of(source)), keys))


def _as_tensor(key: Any) -> Any:
    """What torch makes of a list of numbers; a number for a tensor that is one."""
    if isinstance(key, (list, range)):
        key = torch.tensor(list(key), device="cpu")
        if not key.numel():
            key = key.long()
    if isinstance(key, Tensor) and key.dim() == 0 and key.dtype not in _MASKS:
        return int(key)
    return key


def _read(key: Any) -> int:
    """How many dimensions a key consumes."""
    if isinstance(key, Tensor):
        return key.dim() if key.dtype in _MASKS else 1
    if isinstance(key, bool):
        raise Unknown("key")
    if key is None:
        return 0
    if isinstance(key, (int, slice)):
        return 1
    raise Unknown("key")


def _picked(
    a: Analysis, operation: Operation, layouts: list[Layout], keys: Sequence[Any]
) -> list[Layout | None]:
    """The layouts of the result.

    The dimensions of tensors that are keys stand at the place of the first of them, or in front of all others
    if keys of other kinds stand between them.
    """
    made: list[Layout | None] = []
    tensors: list[int] = []  # the places of the result at which they are
    rank = 0
    sizes = list(operation.args[0].shape)
    for key in keys:
        if key is None:
            made.append(None)
        elif isinstance(key, slice):
            made.append(_sliced(a, operation, layouts.pop(0), key.indices(sizes.pop(0))))
        else:
            read = _read(key)
            for _ in range(read):
                fix(layouts.pop(0), _by_number(operation))
                sizes.pop(0)
            if isinstance(key, Tensor):
                if key.dtype in _MASKS:
                    for own in a.of(key):
                        fix(own, _by_number(operation))
                rank = max(rank, 1 if key.dtype in _MASKS else key.dim())
                tensors.append(len(made) + len(tensors))
    if not tensors:
        return made
    is_one_run = len({place - i for i, place in enumerate(tensors)}) == 1
    first = tensors[0] if is_one_run else 0
    return [*made[:first], *[None] * rank, *made[first:]]


def _sliced(
    a: Analysis, operation: Operation, layout: Layout, indices: tuple[int, int, int]
) -> Layout | None:
    start, stop, step = indices
    if (start, stop, step) == (0, size_of(layout), 1):
        return layout
    if step == 1 and start < stop:
        return _part(a, operation, layout, start, stop - start)
    fix(layout, _by_number(operation))
    return None


def _by_number(operation: Operation) -> str:
    return f"{operation.name} takes its items by number"


def _part(a: Analysis, operation: Operation, layout: Layout, start: int, length: int) -> Layout:
    """A run of neighbours, cut out of a dimension."""
    part = Atom(length)
    rest = size_of(layout) - start - length
    around: list[Layout] = [Atom(start), part, Atom(rest)]
    unify(layout, Concat(tuple(p for p in around if size_of(p))), operation.name)
    return part
