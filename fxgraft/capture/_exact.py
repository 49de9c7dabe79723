"""What a condition has to say beside ``==``, and builtins in it whose names are those of parameters.

``1 == 1.0 == True``, ``0.0 == -0.0``, ``"a" == Mode.A``, orders of dictionaries:

equal to (2, 0.5)     type($[0]) is int, type($[1]) is float
equal to [1, 2, 3]    all(type(item) is int for item in $)
equal to {"a": 1}     list($) == ['a'], type($['a']) is int
equal to [Mode.A]     $[0] is §0
equal to 0.0          type($) is float, §0(1.0, $) == 1.0       where §0 is math.copysign

``forward(self, x, type="mean")``:

(type(type) is str and type == 'mean')  ->  (_builtin_type(type) is _builtin_str and type == 'mean')
"""

from __future__ import annotations

import ast
import builtins
import enum
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

NUMBERS = (bool, int, float, complex)
TEXTS = (str, bytes)
SIGN = math.copysign
"""Bound at import: while a model is traced, torch.fx has functions of its own in ``math``."""


def has_literal(value: Any) -> bool:
    """Whether Python's text for a constant gives it again."""
    if type(value) in (list, tuple):
        return all(map(has_literal, value))
    if type(value) is set:
        return len(value) > 0 and all(map(has_literal, value))
    if type(value) is dict:
        return all(has_literal(k) and has_literal(v) for k, v in value.items())
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is complex:
        return math.isfinite(value.real) and math.isfinite(value.imag)
    if type(value) in (str, bytes):
        return len(value) < 200 and not any(c in str(value) for c in "$§\n")
    return type(value) in (bool, int, type(None))


def exact_tests(where: str, value: Any, name_of: Callable[[Any], str]) -> Iterator[str]:
    """Conditions under which what equals ``value`` has its types, its order, and its signs of zeros.

    Args:
        where: Python for what is tested.
        value: a constant, or a container of constants.
        name_of: gives an object that has no literal a name.
    """
    kind = type(value)
    if kind in NUMBERS:
        yield f"type({where}) is {kind.__name__}"
        yield from _signs(where, value, name_of)
    elif kind in TEXTS:
        yield f"type({where}) is {kind.__name__}"
    elif isinstance(value, enum.Enum):
        yield f"{where} is {name_of(value)}"
    elif isinstance(value, NUMBERS + TEXTS):  # of a class of its own
        yield f"type({where}) is {name_of(kind)}"
    elif isinstance(value, dict):
        keys = list(value)
        yield f"list({where}) == {repr(keys) if has_literal(keys) else name_of(keys)}"
        yield from exact_tests(f"list({where})", keys, name_of)
        for i, (key, item) in enumerate(value.items()):
            at = f"{where}[{key!r}]" if has_literal(key) else f"list({where}.values())[{i}]"
            yield from exact_tests(at, item, name_of)
    elif isinstance(value, (set, frozenset)):
        for one in dict.fromkeys(map(type, value)):
            count = sum(type(item) is one for item in value)
            said = one.__name__ if one in NUMBERS + TEXTS else name_of(one)
            yield f"sum(type(item) is {said} for item in {where}) == {count}"
    elif isinstance(value, (list, tuple)):
        types = {type(item) for item in value}
        if (len(types) == 1 and types <= {bool, int, *TEXTS}) or (types == {float} and all(value)):
            yield f"all(type(item) is {types.pop().__name__} for item in {where})"
            return
        for i, item in enumerate(value):
            yield from exact_tests(f"{where}[{i}]", item, name_of)


def _signs(where: str, value: Any, name_of: Callable[[Any], str]) -> Iterator[str]:
    if type(value) is float and value == 0:
        yield f"{name_of(SIGN)}(1.0, {where}) == {SIGN(1.0, value)}"
    elif type(value) is complex:
        yield from _signs(f"{where}.real", value.real, name_of)
        yield from _signs(f"{where}.imag", value.imag, name_of)


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
    """Those other names, and the builtins behind them."""
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
