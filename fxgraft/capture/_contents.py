"""What a Python object holds, and what it is called in messages."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

from fxgraft.capture._code import CACHED, is_own_class
from fxgraft.capture._exact import has_literal
from fxgraft.capture._facts import Fact, Self, Step, equals, is_constant, is_object

FUNCTIONS = (FunctionType, BuiltinFunctionType, type, CACHED)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Sequential)


def items_of(value: Any, base: Any, path: tuple[Step, ...]) -> Iterator[tuple[Fact, Any, Step | None]]:
    """The items of a container: a fact of its form, with a part and the step to it where there is one."""
    form = is_object(base, (*path, ("attr", "__class__")), type(value))
    yield form, None, None
    if isinstance(value, Mapping):
        keys = list(value)
        fact = (
            equals(base, path, keys) if all(map(is_constant, keys)) else Fact(base, path, "$ == §0", (keys,))
        )
        test, shown = (text.replace("$", "list($)") for text in (fact.test, fact.shown))
        yield replace(fact, test=test, shown=shown), None, None
        for i, (key, part) in enumerate(value.items()):
            yield form, part, ("item", key) if has_literal(key) else ("value", i)
    elif isinstance(value, Set):
        yield Fact(base, path, "set($) == §0", (set(value),)), None, None
    else:
        yield Fact(base, path, f"len($) == {len(value)}"), None, None
        for i, part in enumerate(value):
            yield form, part, ("item", i)


def variables_of(owner: Any) -> dict[str, Any]:
    """What is in an object that cannot be instrumented: data, and the objects that it holds."""
    if not isinstance(owner, type):
        try:
            held = dict(vars(owner))
        except TypeError:
            held = {}
        names = dir(type(owner)) if not held and not isinstance(owner, FUNCTIONS) else ()
        for name in names:  # an extension type
            if (
                not name.startswith("__")
                and is_constant(value := _plainly(owner, name))
                and value is not None
            ):
                held[name] = value
        return held
    found: dict[str, Any] = {}
    if issubclass(owner, enum.Enum):  # its members do not change
        return found
    for cls in reversed(owner.__mro__):
        if is_own_class(cls):
            found |= vars(cls)
    return {
        name: value
        for name, value in found.items()
        if not name.startswith("__") and not hasattr(type(value), "__get__")
    }


def _plainly(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except Exception:  # a property that raises is none that the code has read
        return None


def name_of(base: Any) -> str:
    """What a base is called in messages."""
    if isinstance(base, Self):
        return "self"
    return str(getattr(base, "__name__", getattr(base, "name", type(base).__name__)))


def content_of(cell: Any) -> Any:
    """What a cell of a closure holds; None of an empty one."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def is_container(value: Any) -> bool:
    """Whether it is a module that is a list, a dictionary or a sequence of others."""
    return isinstance(value, _CONTAINERS)
