"""What nodes of a graph compute, as Python over the inputs of a call."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch.fx as fx

from fxgraft.capture._facts import expression, steps_to

_INFIX = {
    operator.gt: ">", operator.ge: ">=", operator.lt: "<", operator.le: "<=", operator.eq: "==",
    operator.ne: "!=", operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//",
    operator.truediv: "/", operator.mod: "%", operator.pow: "**", operator.and_: "&", operator.or_: "|",
    operator.is_: "is", operator.is_not: "is not",
}  # fmt: skip
NUMBER_FUNCTIONS = (
    int, round, abs, math.ceil, math.floor, math.trunc, math.sqrt, math.log, math.log2, math.pow, math.prod,
)  # fmt: skip
"""Functions of Python's own that compute a number from sizes."""
BUILT_IN = (len, list, type, isinstance, hasattr)
_PREFIX = {operator.neg: "-", operator.not_: "not ", operator.pos: "+"}
SIZES = ("size", "numel", "nelement", "dim", "ndimension")
KINDS = ("is_floating_point", "is_complex")
FACTS = ("dtype", "device", "is_cuda", "layout")


class UnwritableError(Exception):
    """A condition is no expression over the inputs.

    Attributes:
        node: the value on the way that it asks for.
        of: what it asks for: ``"size"``, ``"rank"``, ``"kind"`` (a dtype), ``"layout"`` or ``"device"``.
    """

    def __init__(self, node: fx.Node, of: str = "size"):
        super().__init__(str(node))
        self.node, self.of = node, of


class Writer:
    """Writes what nodes compute as Python over the inputs of a call.

    Args:
        inputs: placeholder -> the expression of its value.
        formulas: node -> its sizes as expressions, for values computed on the way.
    """

    def __init__(self, inputs: Mapping[str, str], formulas: Mapping[fx.Node, tuple[str, ...]] | None = None):
        self._inputs = inputs
        self._formulas = formulas or {}
        self.objects: list[Any] = []

    def __call__(self, value: Any) -> str:
        """The expression. Raises `UnwritableError`."""
        if not isinstance(value, fx.Node):
            return self._constant(value)
        node = value
        if node.op == "placeholder" and str(node.target) in self._inputs:
            return self._inputs[str(node.target)]
        if node.op == "get_attr":
            return expression("self", steps_to(str(node.target)))
        if node.op == "call_method" and node.target in SIZES:
            return self._size(node)
        if node.op == "call_method" and node.target == "is_contiguous" and len(node.args) == 1:
            try:
                return f"{self(node.args[0])}.is_contiguous({self._options(node)})"
            except UnwritableError as error:
                raise UnwritableError(error.node, of="layout") from None
        if node.op == "call_method" and node.target in KINDS:
            return f"{self._of_kind(node.args[0])}.{node.target}()"
        if node.op == "call_method" and node.target == "get" and not node.kwargs:
            of, *given = node.args
            return f"{self(of)}.get({', '.join(map(self, given))})"
        if node.op == "call_function":
            args = node.args
            if node.target is getattr and isinstance(args[1], str):
                return self._attribute(args[0], args[1])
            if node.target is operator.getitem:
                return f"{self(args[0])}[{self(args[1])}]"
            if node.target in _INFIX and len(args) == 2:
                return f"({self(args[0])} {_INFIX[node.target]} {self(args[1])})"  # type: ignore[index]
            if node.target in _PREFIX:
                return f"({_PREFIX[node.target]}{self(args[0])})"  # type: ignore[index]
            if node.target is operator.contains:
                return f"({self(args[1])} in {self(args[0])})"
            if node.target is len:
                return f"len({self._rank(args[0])})"
            if node.target in NUMBER_FUNCTIONS:
                return f"{self._constant(node.target)}({', '.join(map(self, args))})"
            if node.target in BUILT_IN:
                return f"{node.target.__name__}({', '.join(map(self, args))})"  # type: ignore[union-attr]
        raise UnwritableError(node)

    def _options(self, node: fx.Node) -> str:
        return ", ".join(f"{name}={self._constant(value)}" for name, value in node.kwargs.items())

    def _attribute(self, of: Any, name: str) -> str:
        kind = "device" if name in ("device", "is_cuda") else "kind"
        return f"{self._of_kind(of, kind) if name in FACTS else self(of)}.{name}"

    def _of_kind(self, of: Any, kind: str = "kind") -> str:
        try:
            return self(of)
        except UnwritableError as error:
            raise UnwritableError(error.node, of=kind) from None

    def _rank(self, size: Any) -> str:
        """The value of a ``size()`` of which nothing but the length counts."""
        try:
            return self(size)
        except UnwritableError as error:
            raise UnwritableError(error.node, of="rank" if error.of == "size" else error.of) from None

    def _size(self, node: fx.Node) -> str:
        of, *dims = node.args
        dims += node.kwargs.values()
        if node.target in ("dim", "ndimension"):
            return f"{self._rank(of)}.dim()"
        try:
            return f"{self(of)}.{node.target}({', '.join(map(self, dims))})"
        except UnwritableError:
            if of not in self._formulas or node.target != "size":
                raise UnwritableError(of if isinstance(of, fx.Node) else node) from None
        sizes = self._formulas[of]  # type: ignore[index]
        if dims:
            return sizes[dims[0]]  # type: ignore[index, no-any-return]
        return f"({', '.join(sizes)},)"

    def _constant(self, value: Any) -> str:
        if (
            value is None
            or isinstance(value, (bool, int))
            or (isinstance(value, str) and value.isidentifier())
        ):
            return repr(value)
        if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
            inside = "".join(f"{self(item)}, " for item in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
        if isinstance(value, slice):
            return f"slice({self(value.start)}, {self(value.stop)}, {self(value.step)})"
        nodes: list[fx.Node] = []
        fx.node.map_arg(value, nodes.append)
        if nodes:
            raise UnwritableError(nodes[0])
        self.objects.append(value)
        return f"§{len(self.objects) - 1}"
