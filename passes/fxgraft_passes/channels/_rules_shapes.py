"""Operations that arrange numbers anew: views, transposes, concatenations, parts."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from fxgraft_passes.channels._analysis import Analysis
from fxgraft_passes.channels._rules_elementwise import same
from fxgraft_passes.channels._rules_table import Unknown, dims_of, given, one, rule, sizes_of, tensor
from fxgraft_passes.channels.layout import Atom, Concat, Layout, Product, fix, size_of, unify
from fxgraft_passes.channels.recording import Operation, tensors_in


@rule("""
view reshape flatten unflatten squeeze unsqueeze view_as reshape_as ravel squeeze_ unsqueeze_ atleast_2d
atleast_3d
""")
def viewed(a: Analysis, operation: Operation) -> None:
    """The same numbers in the same order, under other sizes."""
    source, result = tensor(operation, 0, "input"), one(operation)
    if source.dtype is not result.dtype or not source.numel():
        raise Unknown("dtype")
    if source.shape == result.shape:
        return same(a, operation)
    made: list[Layout] = [Atom(size) for size in result.shape]
    for before, after in _aligned(source.shape, result.shape):
        ours: Layout = Product(tuple(a.of(source)[i] for i in before))
        unify(ours, Product(tuple(made[i] for i in after)), operation.name)
    return a.make(operation, result, made)


def _aligned(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which dimensions became which: the smallest runs of equal products. Those of size 1 belong to none."""
    ours = [i for i, n in enumerate(before) if n != 1]
    theirs = [i for i, n in enumerate(after) if n != 1]
    found, left, right = [], [], []  # type: ignore[var-annotated]
    while ours or theirs:
        p, q = prod(before[i] for i in left), prod(after[i] for i in right)
        if p <= q and ours:
            left.append(ours.pop(0))
        elif theirs:
            right.append(theirs.pop(0))
        else:
            left.append(ours.pop(0))
        if prod(before[i] for i in left) == prod(after[i] for i in right):
            found.append((left, right))
            left, right = [], []
    return found


@rule("t T mT H mH transpose transpose_ swapaxes swapdims permute movedim moveaxis adjoint")
def reordered(a: Analysis, operation: Operation) -> None:
    """Dimensions in another order."""
    source, result = operation.args[0], one(operation)
    dims = _order(operation, source.dim())
    a.make(operation, result, [a.of(source)[i] for i in dims])
    a.is_reordered(result, source, dims)


def _order(operation: Operation, rank: int) -> list[int]:
    name = getattr(operation.target, "__name__", "")
    order = list(range(rank))
    if name in ("t", "__get__", "adjoint"):
        holder = getattr(operation.target, "__self__", None)
        if holder is Tensor.T:
            return order[::-1]
        return [*order[:-2], *order[-2:][::-1]]
    if name == "permute":
        dims = given(operation, 1, "dims")
        return dims_of(dims if isinstance(dims, (tuple, list)) else operation.args[1:], rank)
    if name in ("movedim", "moveaxis"):
        source, target = (
            dims_of(given(operation, i, n), rank) for i, n in ((1, "source"), (2, "destination"))
        )
        rest = [i for i in order if i not in source]
        for place, dim in sorted(zip(target, source, strict=True)):
            rest.insert(place, dim)
        return rest
    first, second = given(operation, 1, "dim0", 0), given(operation, 2, "dim1", 1)
    i, j = first % rank, second % rank
    order[i], order[j] = order[j], order[i]
    return order


@rule("expand expand_as broadcast_to broadcast_tensors")
def expanded(a: Analysis, operation: Operation) -> None:
    """Sizes of 1 become others, which are new."""
    if not isinstance(operation.result, Tensor):
        raise Unknown("result")
    source, result = operation.args[0], operation.result
    extra = result.dim() - source.dim()
    layouts: list[Layout | None] = [None] * extra
    for i, layout in enumerate(a.of(source)):
        layouts.append(layout if source.shape[i] == result.shape[extra + i] else None)
    a.make(operation, result, layouts)


@rule("repeat tile")
def repeated(a: Analysis, operation: Operation) -> None:
    """All of it, several times: outside of what it was."""
    source, result = operation.args[0], one(operation)
    times = sizes_of(operation.args[1:] or operation.kwargs.values())
    layouts: list[Layout] = [Atom(1)] * (len(times) - source.dim()) + list(a.of(source))
    if len(layouts) != len(times):
        raise Unknown("times")
    made = [
        Product((Atom(n), layout)) if n != 1 else layout for n, layout in zip(times, layouts, strict=True)
    ]
    a.make(operation, result, made)


@rule("repeat_interleave")
def interleaved(a: Analysis, operation: Operation) -> None:
    """Each index several times."""
    source, times = tensor(operation, 0, "input"), given(operation, 1, "repeats")
    dim = given(operation, 2, "dim", None)
    if not isinstance(times, int) or dim is None:
        raise Unknown("repeats")
    layouts: list[Layout] = list(a.of(source))
    layouts[dim % source.dim()] = Product((layouts[dim % source.dim()], Atom(times)))
    a.make(operation, one(operation), layouts)


@rule("cat concat concatenate")
def concatenated(a: Analysis, operation: Operation) -> None:
    """One behind the other."""
    parts = [t for t in given(operation, 0, "tensors") if t.numel() or t.dim() > 1]
    result = one(operation)
    dim = int(given(operation, 1, "dim", operation.kwargs.get("axis", 0))) % result.dim()
    layouts = list(a.of(parts[0]))
    for part in parts[1:]:
        for i, layout in enumerate(a.of(part)):
            if i != dim:
                unify(layout, layouts[i], operation.name)
    for part in parts:
        for i in range(result.dim()):
            a.role(part, i, "scale")
    made: list[Layout | None] = list(layouts)
    made[dim] = Concat(tuple(a.of(part)[dim] for part in parts))
    a.make(operation, result, made)


@rule("stack hstack vstack")
def stacked(a: Analysis, operation: Operation) -> None:
    """Equal ones, in a new dimension."""
    if getattr(operation.target, "__name__", "") != "stack":
        raise Unknown("form")
    parts, result = list(given(operation, 0, "tensors")), one(operation)
    dim = int(given(operation, 1, "dim", 0)) % result.dim()
    layouts: list[Layout | None] = list(a.of(parts[0]))
    for part in parts[1:]:
        for ours, theirs in zip(a.of(part), a.of(parts[0]), strict=True):
            unify(ours, theirs, operation.name)
    layouts.insert(dim, None)
    a.make(operation, result, layouts)
    fix(a.of(result)[dim], f"{operation.name} counts it")


@rule("chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split")
def cut(a: Analysis, operation: Operation) -> None:
    """Parts of one dimension, one behind the other."""
    source, parts = operation.args[0], tensors_in(operation.result)
    dim = int(given(operation, 2, "dim", 0)) % source.dim()
    cuts: list[Layout] = [Atom(part.shape[dim]) for part in parts]
    if isinstance(given(operation, 1, "chunks", given(operation, 1, "split_size", 1)), int):
        _cut_equally(a, operation, cuts)
    unify(a.of(source)[dim], Concat(tuple(cuts)), operation.name)
    for part, own in zip(parts, cuts, strict=True):
        a.make(operation, part, [own if i == dim else layout for i, layout in enumerate(a.of(source))])


def _cut_equally(a: Analysis, operation: Operation, cuts: list[Layout]) -> None:
    """Parts of one size stay so: where one grows, all do."""
    for part in cuts[1:]:
        if size_of(part) == size_of(cuts[0]):
            a.equal_sizes.append((cuts[0], part, operation.name))
        else:
            fix(part, f"{operation.name} cuts it into parts that are not equal")
            fix(cuts[0], f"{operation.name} cuts it into parts that are not equal")


@rule("unbind")
def unbound(a: Analysis, operation: Operation) -> None:
    """The items of one dimension."""
    source = operation.args[0]
    dim = int(given(operation, 1, "dim", 0)) % source.dim()
    fix(a.of(source)[dim], f"{operation.name} takes its items by number")
    for part in tensors_in(operation.result):
        a.make(operation, part, [layout for i, layout in enumerate(a.of(source)) if i != dim])
