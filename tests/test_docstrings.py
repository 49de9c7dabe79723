"""What the reference pages show has an argument table: each parameter of a public name is described."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sources import parsed
from tests.test_public_api import MODULES, public

ROOT = Path(__file__).parent.parent
SECTION = re.compile(r"^( *)(Args|Attributes):\n((?:\1 +\S.*\n|\s*\n)+)", re.MULTILINE)
"""The head of a section, and its lines, which are indented further."""
ENTRY = re.compile(r"^(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \(.+?\))?: \S")
"""``name: what it is``, ``a, b: what they are``."""


def described(docstring: str, heads: tuple[str, ...] = ("Args", "Attributes")) -> set[str]:
    """The names that the sections with these heads have an entry for."""
    found: set[str] = set()
    for section in SECTION.finditer(inspect.cleandoc(docstring) + "\n"):
        for line in inspect.cleandoc("\n" + section[3]).splitlines() if section[2] in heads else ():
            if entry := ENTRY.match(line):
                found |= {name.strip("* ") for name in entry["names"].split(",")}
    return found


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
        if (missing := parameters_of(value) - described(docstring))
    }
    assert lacking == {}, "describe them under 'Args:' (of a dataclass: 'Attributes:')"


CAUGHT = {("Entry.from_json", "TypeError"), ("Reader.feed", "TypeError")}
"""What the function raises, and catches itself."""


def raised_in(functions: list[Any]) -> set[str]:
    """The names of the errors that stand behind a ``raise`` in the code of these functions."""
    written = [one for one in map(inspect.unwrap, functions) if one.__code__.co_filename != "<string>"]
    trees = [ast.parse(textwrap.dedent(inspect.getsource(one))) for one in written]
    found = [node.exc for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return {exc.func.id for exc in found if isinstance(exc, ast.Call) and isinstance(exc.func, ast.Name)}


@pytest.mark.parametrize("module", MODULES)
def test_each_error_that_a_public_name_raises_itself_is_described(module: str) -> None:
    """In its docstring, or in that of its class."""
    lacking = {}
    for name, value, docstring in callables(module):
        made = ("__init__", "__post_init__", "__call__") if inspect.isclass(value) else ()
        functions = [vars(value)[n] for n in made if inspect.isfunction(vars(value).get(n))]
        owner = getattr(importlib.import_module(module), name.partition(".")[0])
        described_in = f"{docstring} {(owner.__doc__ or '') if inspect.isclass(owner) else ''}"
        errors = raised_in(functions if inspect.isclass(value) else [value])
        missing = {error for error in errors if error not in described_in and (name, error) not in CAUGHT}
        if missing:
            lacking[name] = missing
    assert lacking == {}, "describe them under 'Raises:'"


def names_of_arguments(function: ast.FunctionDef) -> set[str]:
    found = function.args
    variadic = [one for one in (found.vararg, found.kwarg) if one is not None]
    return {one.arg for one in (*found.posonlyargs, *found.args, *found.kwonlyargs, *variadic)}


def test_what_an_argument_table_describes_is_an_argument() -> None:
    """Of all functions and constructors, also of those that only the library calls."""
    gone = {}
    for path in (file for folder in ("fxgraft", "passes") for file in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(parsed(path)):
            called = node
            if isinstance(node, ast.ClassDef):
                inner = [part for part in node.body if isinstance(part, ast.FunctionDef)]
                called = next((part for part in inner if part.name == "__init__"), node)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and isinstance(called, ast.FunctionDef):
                told = described(ast.get_docstring(node) or "", heads=("Args",))
                if unknown := told - names_of_arguments(called):
                    gone[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = unknown
    assert gone == {}


def test_an_entry_is_told_from_prose() -> None:
    assert described("Do.\n\nArgs:\n    a: one,\n        b: no entry\n    c, **d: two\n\n    e: f\n") == {
        *("a", "c", "d", "e")
    }
    assert described("Do.\n\n    a: no section\n\nArgs:\n    the one that: is prose\n") == set()
    assert described("Do.\n\nAttributes:\n    x: an end without a line break") == {"x"}
