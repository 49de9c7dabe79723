"""What the reference pages show has an argument table: each parameter of a public name is described."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_public_api import MODULES, public

SECTION = re.compile(r"^( *)(?:Args|Attributes):\n((?:\1 +\S.*\n|\s*\n)+)", re.MULTILINE)
"""The head of a section, and its lines, which are indented further."""
HIDDEN = re.compile(r"^::: fxgraft\.Host\n    options:\n      filters: .*\"!\^\((.*?)\)\$\"\]", re.MULTILINE)
"""The public methods of `Host` that only the library calls; its reference page leaves them out."""
ENTRY = re.compile(r"^(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \(.+?\))?: \S")
"""``name: what it is``, ``a, b: what they are``."""


def described(docstring: str) -> set[str]:
    """The parameters that the sections ``Args`` and ``Attributes`` have an entry for."""
    found: set[str] = set()
    for section in SECTION.finditer(inspect.cleandoc(docstring) + "\n"):
        for line in inspect.cleandoc("\n" + section[2]).splitlines():
            if entry := ENTRY.match(line):
                found |= {name.strip("* ") for name in entry["names"].split(",")}
    return found


def hidden() -> set[str]:
    page = Path(__file__).parent.parent / "docs" / "reference" / "fxgraft.md"
    found = HIDDEN.search(page.read_text(encoding="utf-8"))
    assert found is not None
    return {f"Host.{name}" for name in found[1].split("|")}


def parameters_of(value: Any) -> set[str]:
    parameters = inspect.signature(value).parameters
    return {name for name in parameters if name not in ("self", "cls") and not name.startswith("_")}


def constructed(cls: type) -> bool:
    """Whether a caller makes objects of the class: not of an enum, an error, or a protocol."""
    return not issubclass(cls, (enum.Enum, BaseException)) and not getattr(cls, "_is_protocol", False)


def methods_of(cls: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(cls).items():
        if not name.startswith("_") and (
            inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod))
        ):
            yield name, getattr(cls, name)


def callables(module: str) -> Iterator[tuple[str, Any, str]]:
    """Name, what is called, and its docstring: functions, constructors, and public methods."""
    for name in public(importlib.import_module(module)):
        value = getattr(importlib.import_module(module), name)
        if inspect.isclass(value):
            if constructed(value):
                own = value.__init__.__doc__ if "__init__" in vars(value) else None
                yield name, value, f"{inspect.cleandoc(value.__doc__ or '')}\n\n{inspect.cleandoc(own or '')}"
            for member, method in methods_of(value):
                yield f"{name}.{member}", method, inspect.getdoc(method) or ""  # or that of what it overrides
        elif inspect.isfunction(value):
            yield name, value, value.__doc__ or ""


@pytest.mark.parametrize("module", MODULES)
def test_each_parameter_of_a_public_name_is_described(module: str) -> None:
    lacking = {
        name: sorted(missing)
        for name, value, docstring in callables(module)
        if name not in hidden() and (missing := parameters_of(value) - described(docstring))
    }
    assert lacking == {}, "describe them under 'Args:' (of a dataclass: 'Attributes:')"


def test_an_entry_is_told_from_prose() -> None:
    assert described("Do.\n\nArgs:\n    a: one,\n        b: no entry\n    c, **d: two\n\n    e: f\n") == {
        *("a", "c", "d", "e")
    }
    assert described("Do.\n\n    a: no section\n\nArgs:\n    the one that: is prose\n") == set()
    assert described("Do.\n\nAttributes:\n    x: an end without a line break") == {"x"}
