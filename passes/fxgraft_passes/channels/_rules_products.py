"""Operations that multiply and sum up: layers with weights, matrix products, attention, embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fxgraft_passes.channels._analysis import Analysis
from fxgraft_passes.channels._rules_table import Unknown, given, one, rule, tensor
from fxgraft_passes.channels.layout import Atom, Layout, Product, fix, known, size_of, unify
from fxgraft_passes.channels.recording import Operation


@rule("linear")
def linear(a: Analysis, operation: Operation) -> None:
    """``x @ weight.T + bias``."""
    x, weight = tensor(operation, 0, "input"), tensor(operation, 1, "weight")
    bias = given(operation, 2, "bias", None)
    if weight.dim() != 2:
        raise Unknown("weight")
    a.contract(operation, (x, x.dim() - 1), (weight, 1))
    a.role(weight, 0, "out")
    _add_bias(a, operation, bias, a.of(weight)[0])
    a.make(operation, one(operation), [*a.of(x)[:-1], a.of(weight)[0]])


def _add_bias(a: Analysis, operation: Operation, bias: Any, layout: Layout) -> None:
    if isinstance(bias, Tensor):
        unify(a.of(bias)[-1], layout, operation.name)
        a.role(bias, bias.dim() - 1, "out")


@rule("matmul __matmul__ __rmatmul__ mm bmm mv dot inner")
def matmul(a: Analysis, operation: Operation) -> None:
    """The last dimension of one with the last but one of the other; those in front of them are paired."""
    x, y = operation.args[:2]
    if operation.target is Tensor.__rmatmul__:
        x, y = y, x
    if x.dim() < 2 or y.dim() < 2 or getattr(operation.target, "__name__", "") == "inner":
        raise Unknown("form")
    a.make(operation, one(operation), _multiplied(a, operation, x, y))


def _multiplied(a: Analysis, operation: Operation, x: Tensor, y: Tensor) -> list[Layout | None]:
    a.contract(operation, (x, x.dim() - 1), (y, y.dim() - 2))
    a.role(y, y.dim() - 1, "out")
    a.role(x, x.dim() - 2, "out")
    return [*_paired(a, operation, (x, y), 2), a.of(x)[-2], a.of(y)[-1]]


def _paired(a: Analysis, operation: Operation, tensors: tuple[Tensor, ...], last: int) -> list[Layout]:
    """The dimensions in front of the ``last`` ones, paired after broadcasting."""
    rank = max(t.dim() for t in tensors) - last
    found: list[Layout] = []
    for dim in range(rank):
        met: list[Layout] = []
        for t in tensors:
            own = dim - rank + t.dim() - last
            if own >= 0 and t.shape[own] != 1:
                met.append(a.of(t)[own])
        for layout in met[1:]:
            unify(layout, met[0], operation.name)
        found.append(met[0] if met else Atom(1))
    return found


@rule("addmm baddbmm")
def added_product(a: Analysis, operation: Operation) -> None:
    """``bias + x @ y``."""
    batched = getattr(operation.target, "__name__", "") == "baddbmm"
    names = ("input", "batch1", "batch2") if batched else ("input", "mat1", "mat2")
    bias, x, y = (tensor(operation, i, name) for i, name in enumerate(names))
    made = _multiplied(a, operation, x, y)
    for i in range(bias.dim()):
        layout = made[len(made) - bias.dim() + i]
        if layout is not None and bias.shape[i] == size_of(layout):
            unify(a.of(bias)[i], layout, operation.name)
            a.role(bias, i, "out")
    a.make(operation, one(operation), made)


@rule("_grouped_mm grouped_mm")
def grouped_product(a: Analysis, operation: Operation) -> None:
    """Rows of ``x``, in runs, each times the matrix of its run: of experts."""
    x, y = tensor(operation, 0, "self"), tensor(operation, 1, "mat2")
    if (x.dim(), y.dim()) != (2, 3):
        raise Unknown("form")
    fix(a.of(y)[0], f"{operation.name} counts it")
    a.contract(operation, (x, 1), (y, 1))
    a.role(y, 2, "out")
    a.make(operation, one(operation), [a.of(x)[0], a.of(y)[2]])


@rule("einsum")
def einsum(a: Analysis, operation: Operation) -> None:
    """Letters that are written twice are one dimension; those that the result lacks are summed up."""
    equation = given(operation, 0, "equation")
    operands = list(operation.args[1:])
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        raise Unknown("equation")
    left, right = equation.replace(" ", "").split("->")
    places: dict[str, list[tuple[Tensor, int]]] = {}
    for letters, operand in zip(left.split(","), operands, strict=True):
        if len(set(letters)) != len(letters) or len(letters) != operand.dim():
            raise Unknown("equation")
        for dim, letter in enumerate(letters):
            places.setdefault(letter, []).append((operand, dim))
    for letter, found in places.items():
        _letter(a, operation, found, is_summed=letter not in right)
    a.make(operation, one(operation), [a.of(t)[dim] for t, dim in (places[letter][0] for letter in right)])


def _letter(a: Analysis, operation: Operation, found: list[tuple[Tensor, int]], is_summed: bool) -> None:
    first, *others = found
    if is_summed and len(found) == 2:
        return a.contract(operation, first, others[0])
    for tensor_, dim in others:
        unify(a.of(tensor_)[dim], a.of(first[0])[first[1]], operation.name)
    if is_summed:
        return fix(a.of(first[0])[first[1]], f"{operation.name} sums it up")
    for tensor_, dim in found:
        a.role(tensor_, dim, "out" if len(found) == 1 else "scale")
    return None


@rule("scaled_dot_product_attention")
def attention(a: Analysis, operation: Operation) -> None:
    """Queries with keys, over positions with values."""
    q, k, v = (tensor(operation, i, n) for i, n in enumerate(("query", "key", "value")))
    mask = given(operation, 3, "attn_mask", None)
    a.dot(a.of(q)[-1], a.of(k)[-1], operation)
    unify(a.of(q)[-1], a.of(k)[-1], operation.name)
    unify(a.of(k)[-2], a.of(v)[-2], operation.name)
    if given(operation, 7, "enable_gqa", False):
        times = q.shape[-3] // k.shape[-3]
        grouped: Layout = Product((a.of(k)[-3], Atom(times))) if times != 1 else a.of(k)[-3]
        unify(a.of(q)[-3], grouped, operation.name)
        unify(a.of(k)[-3], a.of(v)[-3], operation.name)
        front = [*_paired(a, operation, (q, k, v), 3), a.of(q)[-3]]
    else:
        front = _paired(a, operation, (q, k, v), 2)
    if isinstance(mask, Tensor):
        scores: list[Layout] = [*front, a.of(q)[-2], a.of(k)[-2]]
        for i, layout in enumerate(a.of(mask)):
            other = scores[len(scores) - mask.dim() + i]
            if mask.shape[i] == size_of(other):
                unify(layout, other, operation.name)
    a.make(operation, one(operation), [*front, a.of(q)[-2], a.of(v)[-1]])


@rule("multi_head_attention_forward")
def packed_attention(a: Analysis, operation: Operation) -> None:
    """The heads share a width that the call checks, and there is no number for a size of their own."""
    a.refuse(
        operation,
        f"{operation.name} takes its width as heads x size, in one call: for heads and width to grow, let "
        f"layers of their own make queries, keys and values for F.scaled_dot_product_attention",
    )


@rule("embedding")
def embedding(a: Analysis, operation: Operation) -> None:
    """Rows by number."""
    index, weight = tensor(operation, 0, "input"), tensor(operation, 1, "weight")
    fix(a.of(weight)[0], f"{operation.name} takes its rows by number")
    if given(operation, 3, "max_norm", None) is not None:
        fix(a.of(weight)[1], f"{operation.name} limits the norm over it")
    a.role(weight, 1, "out")
    a.make(operation, one(operation), [*a.of(index), a.of(weight)[1]])


@rule("conv1d conv2d conv3d")
def convolution(a: Analysis, operation: Operation) -> None:
    """Channels are multiplied and summed up; places are others afterwards."""
    x, weight = tensor(operation, 0, "input"), tensor(operation, 1, "weight")
    groups, channel = int(given(operation, 6, "groups", 1)), x.dim() - weight.dim() + 1
    _fix_kernel(a, operation, weight)
    if groups == 1:
        a.contract(operation, (x, channel), (weight, 1))
        outer: Layout = a.of(weight)[0]
        a.role(weight, 0, "out")
    else:
        outer = _grouped(a, operation, (x, channel), weight, groups)
    _add_bias(a, operation, given(operation, 2, "bias", None), a.of(weight)[0])
    _convolved(a, operation, x, channel, outer)


def _grouped(a: Analysis, operation: Operation, x: tuple[Tensor, int], weight: Tensor, groups: int) -> Layout:
    """Each group has channels of its own: whole groups can grow."""
    group = Atom(groups)
    unify(a.of(x[0])[x[1]], Product((group, Atom(x[0].shape[x[1]] // groups))), operation.name)
    unify(a.of(weight)[0], Product((group, Atom(weight.shape[0] // groups))), operation.name)
    within = known(a.of(x[0])[x[1]])
    if weight.shape[1] != 1:
        inner = within.parts[-1] if isinstance(within, Product) else within
        fix(inner, f"{operation.name} has {groups} groups, within which it is summed up")
        fix(a.of(weight)[1], f"{operation.name} has {groups} groups, within which it is summed up")
    a.role(weight, 0, "scale" if weight.shape[1] == 1 else "out")
    return a.of(weight)[0]


@rule("conv_transpose1d conv_transpose2d conv_transpose3d")
def transposed_convolution(a: Analysis, operation: Operation) -> None:
    """As a convolution; the weight's first dimension is that of the input."""
    x, weight = tensor(operation, 0, "input"), tensor(operation, 1, "weight")
    channel = x.dim() - weight.dim() + 1
    if int(given(operation, 6, "groups", 1)) != 1:
        raise Unknown("groups")
    _fix_kernel(a, operation, weight)
    a.contract(operation, (x, channel), (weight, 0))
    a.role(weight, 1, "out")
    _add_bias(a, operation, given(operation, 2, "bias", None), a.of(weight)[1])
    _convolved(a, operation, x, channel, a.of(weight)[1])


def _convolved(a: Analysis, operation: Operation, x: Tensor, channel: int, outer: Layout) -> None:
    result = one(operation)
    for layout in a.of(x)[channel + 1 :]:
        fix(layout, f"{operation.name} is computed over it")
    places: list[Layout | None] = [None] * (x.dim() - channel - 1)
    a.make(operation, result, [*a.of(x)[:channel], outer, *places])


def _fix_kernel(a: Analysis, operation: Operation, weight: Tensor) -> None:
    for layout in a.of(weight)[2:]:
        fix(layout, f"is of the kernel of {operation.name}")
