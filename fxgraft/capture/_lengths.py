"""How many values an operation returns: where the code asked, the graph is valid for that number only.

for step in x.unbind(1): ...          x.size(1) == 5
first, *others = x.split(4)           4 * 2 < x.size(0) and x.size(0) <= 4 * 3
for name, item in table.items(): ...  list(table) == ['a', 'b']
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, ValuesView
from typing import Any

import torch
import torch.fx as fx

from fxgraft.capture._code import is_own_module

VIEWS = (KeysView, ValuesView, ItemsView)
SEVERAL = (tuple, list, dict, *VIEWS)
"""What code can iterate over while it is traced, beside sizes."""
_BY_RANK = ("where", "nonzero", "nonzero_numpy", "gradient", "stride")


def name_of(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def subject_of(node: fx.Node) -> Any:
    """What an operation is applied to."""
    return next(iter((*node.args, *node.kwargs.values())), None)


def is_of_parts(node: fx.Node) -> bool:
    """Whether a value has as many parts as what it is made of: ``parts[1:]``, ``list(parts)``, a field."""
    return node.op == "call_function" and getattr(node.target, "__module__", "") in ("builtins", "_operator")


def has_rank_many(node: fx.Node) -> bool:
    """Whether an operation returns one value for each axis of what it is applied to."""
    return name_of(node) in _BY_RANK and len(node.args) + len(node.kwargs) <= 2


def pieces_of(node: fx.Node) -> tuple[str, Any, Any] | None:
    """Into what an operation cuts a tensor: the kind of the cut, its number and the axis.

    The kinds are ``"unbind"``, ``"split"`` (the number is a size) and ``"chunk"`` (a number of pieces).
    """
    kind = name_of(node).removeprefix("unsafe_")
    if kind not in ("unbind", "split", "chunk"):
        return None
    rest = [value for name, value in node.kwargs.items() if name not in ("dim", "input", "tensor")]
    rest = [*node.args[1 if node.args else 0 :], *rest]
    number = None if kind == "unbind" else rest.pop(0)
    return kind, number, node.kwargs.get("dim", rest[0] if rest else 0)


def is_fixed(node: fx.Node, value: Any, of: Any) -> bool:
    """Whether an operation returns as many values in every call.

    Args:
        node: the operation.
        value: what it returned.
        of: what it was applied to.
    """
    if hasattr(value, "_fields") or type(value).__module__ == "torch.return_types":
        return True
    if node.op == "call_method":
        return isinstance(of, torch.Tensor) and isinstance(value, tuple)
    return isinstance(value, tuple) and not is_own_module(str(getattr(node.target, "__module__", "torch")))
