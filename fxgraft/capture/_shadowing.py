"""Conditions on a call whose parameters have names of Python's own: ``forward(self, x, type="mean")``.

(type(type) is str and type == 'mean')  ->  (_builtin_type(type) is _builtin_str and type == 'mean')
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection
from typing import Any

_PREFIX = "_builtin_"


def unshadowed(condition: str, parameters: Collection[str]) -> str:
    """``condition`` with other names for the builtins that parameters hide.

    Args:
        condition: Python where builtins are called, or right of ``is``, and parameters are neither.
        parameters: their names.
    """
    hidden = _hidden_by(parameters)
    if not hidden:
        return condition
    return ast.unparse(_Renaming(hidden).visit(ast.parse(condition, mode="eval")))


def builtins_of(parameters: Collection[str]) -> dict[str, Any]:
    """Those other names, and what they stand for."""
    return {_PREFIX + name: getattr(builtins, name) for name in _hidden_by(parameters)}


def _hidden_by(parameters: Collection[str]) -> set[str]:
    return {name for name in parameters if hasattr(builtins, name)}


class _Renaming(ast.NodeTransformer):
    def __init__(self, hidden: Collection[str]):
        self.hidden = hidden

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.func = self._renamed(node.func)
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            node.comparators = [self._renamed(right) for right in node.comparators]
        return self.generic_visit(node)

    def _renamed(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Name) and node.id in self.hidden:
            return ast.Name(_PREFIX + node.id, ast.Load())
        return node
