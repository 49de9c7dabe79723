"""docs/messages.md has a row for each warning that fxgraft logs, and for each kind of error it raises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.sources import parsed
from tests.test_docs import table

ROOT = Path(__file__).parent.parent
PAGE = "messages.md"
SAYS = {"warning", "exception", "error", "warn", "say_once"}
"""The functions that say something: of loggers, of `warnings`, and our own around them."""
REASONS = {"fxgraft.lifecycle.inactivity", "fxgraft.manager._preparing"}
"""Modules whose texts are said by others: every long one is a message."""
LEFT_OUT = {"fxgraft.demo"}
NEVER = {"AssertionError", "NotImplementedError"}
"""What stands where no program comes to."""
SHORT, LONG = 8, 12
TELLS = (
    r"expected|did you mean|there (?:is|are):? |needs |takes |\bhas: |at most|only |legal actions|"
    "they are arguments of|its options: |the optimizers know: "
)
ASKS = (
    "anew|call|choose|correct|cull|deepen|do|export|fossilize|freeze|germinate|give|"
    "go on|install|keep|leave|let|load|load_from_checkpoint|make|measure|name|pass|"
    "pip install|prepare|print|put|register|replace|rewrite|run|save|say|see|send|set|start|"
    "to trace anew|trace|train|use|write|"
    r"host\.\w+|fxgraft\.\w+|SeedManager\.\w+"
)
REMEDY = re.compile(rf"{TELLS}|(?:^|[.;:,(] |or |(?:for|when) \w+, )(?:{ASKS})\b", re.IGNORECASE)
"""An error tells what was expected, or asks to do something."""
CAUGHT = {
    *(f"fxgraft.capture.{name}" for name in ("_size_formulas", "merge", "_proxy")),
    *(f"fxgraft.compiling.{name}" for name in ("_by_value", "_child", "_payload")),
    *(f"fxgraft.util.{name}" for name in ("lazy_modules", "reading")),
    *(
        "fxgraft.explore.autogrow",
        "fxgraft.report.reading",
        "fxgraft.slots.branching",
        "fxgraft.slots._gradient_terms",
    ),
}
"""Modules whose errors are reasons in the error of a caller, which says what to do, or that no user meets."""


class Said(NamedTuple):
    """A message in the sources: where, on which line, and its text with ``…`` in the place of values."""

    module: str
    line: int
    text: str


@cache
def sources() -> dict[str, ast.Module]:
    files = [*(ROOT / "fxgraft").rglob("*.py"), *(ROOT / "passes" / "fxgraft_passes").rglob("*.py")]
    found = {}
    for file in sorted(files):
        path = file.relative_to(ROOT / "passes" if "passes" in file.relative_to(ROOT).parts else ROOT)
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if not any(module == out or module.startswith(f"{out}.") for out in LEFT_OUT):
            found[module] = parsed(file)
    return found


def text_of(node: ast.AST, names: dict[str, ast.AST]) -> str:
    """A string in the sources as it will read, with ``…`` for what is put in."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%[\d.]*[srdfg]", "…", text)
        case ast.JoinedStr(values=values):
            return "".join(text_of(value, names) for value in values)
        case ast.FormattedValue(value=ast.Name(id=name)) if name.isupper():
            return text_of(ast.Name(name), names)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left, names) + text_of(right, names)
        case ast.Call(func=function):
            return text_of(function, names)
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in names:
            return text_of(
                names[name], {other: names[other] for other in names if other.isupper() and other != name}
            )
    return "…"


def strings_in(tree: ast.AST) -> dict[str, ast.AST]:
    """Name -> the string that is assigned to it; of a function: the one that it returns."""
    found: dict[str, ast.AST] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Constant, ast.JoinedStr)):
            found |= {name_of(target): node.value for target in node.targets if name_of(target)}
        elif isinstance(node, ast.FunctionDef):
            returned = (
                getattr(node.body[-1], "value", None) if isinstance(node.body[-1], ast.Return) else None
            )
            if isinstance(returned, ast.JoinedStr):
                found[node.name] = returned
    return found


def name_of(function: ast.AST) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def said_by(call: ast.Call, names: dict[str, ast.AST]) -> str:
    """The text of a call that logs, with those of its arguments that are texts, too."""
    first, *pieces = text_of(call.args[0], names).split("…")
    values = iter(call.args[1:] if isinstance(call.args[0], ast.Constant) else ())
    given = (text_of(value, names) for value in values)
    return first + "".join(
        (text if len(longest(text := next(given, "…"))) >= LONG else "…") + piece for piece in pieces
    )


def warnings() -> Iterator[Said]:
    for module, tree in sources().items():
        names = strings_in(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args and name_of(node.func) in SAYS:
                yield Said(module, node.lineno, said_by(node, names))
            elif (
                module in REASONS
                and isinstance(node, ast.JoinedStr)
                and len(longest(text_of(node, {}))) >= LONG
            ):
                yield Said(module, node.lineno, text_of(node, {}))


def raised() -> Iterator[tuple[str, str]]:
    """The name of each kind of error that is defined or raised, and a module that does so."""
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = name_of(node.exc.func)
                if name.endswith("Error") and name not in NEVER:
                    yield name, module
            elif isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                yield node.name, module


def errors() -> Iterator[tuple[str, Said]]:
    """The name of each error that is raised for a user, and its message, where the source has the text."""
    inside = {
        cell
        for row in table(PAGE, "Errors")
        if "inside of" in row[1]
        for cell in re.findall(r"`(\w+)`", row[0])
    }
    for module, tree in sources().items():
        names = strings_in(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                name, text = name_of(node.exc.func), text_of(node.exc.args[0], names)
                if name.endswith("Error") and name not in NEVER | inside and module not in CAUGHT:
                    yield name, Said(module, node.lineno, text)


def parts(text: str) -> list[str]:
    """What is fixed in a message, between the values."""
    return [part.strip(" ;:.,()'") for part in plain(text).split("…")]


def longest(text: str) -> str:
    """The longest fixed part, by which a message is known; empty where only values are said."""
    found = max(parts(text), key=len)
    return found if len(found) >= SHORT else ""


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("`", "").replace("\\|", "|")).strip()


@cache
def warnings_table() -> list[list[str]]:
    """The rows of all tables of warnings, one below each heading of the page."""
    headings = re.findall("^### (.+)$", (ROOT / "docs" / PAGE).read_text(encoding="utf-8"), re.MULTILINE)
    return [row for heading in headings for row in table(PAGE, heading)]


def rows() -> list[list[str]]:
    return [[plain(cell) for cell in row] for row in warnings_table()]


def messages() -> list[str]:
    """The messages in the table, without what is said of them."""
    return [plain(text) for row in warnings_table() for text in re.findall(r"`(.+?)`", row[0])]


SAID = sorted(set(warnings()))


def test_there_are_messages() -> None:
    assert len(SAID) > 30
    assert len(dict(raised())) > 15


@pytest.mark.parametrize("said", SAID, ids=lambda said: f"{said.module}:{said.line}")
def test_a_warning_has_a_row(said: Said) -> None:
    known = longest(said.text)
    if known:
        there = any(known in row[0] for row in rows())
    else:  # only a reason, which somebody else worded
        there = any(row[0].startswith("…") and row[3] == said.module for row in rows())
    assert there, (
        f"docs/{PAGE} says nothing of this message of {said.module} (line {said.line}):\n    {said.text}\n"
        f"Add a row under 'Warnings', with its cause and what to do:\n"
        f"    | `{said.text if known else '…'}` | cause | what to do | {said.module} |"
    )


def test_no_row_is_of_a_message_that_is_gone() -> None:
    texts = [plain(said.text) for said in SAID]
    for message in messages():
        for part in parts(message):
            if len(part) >= SHORT:
                assert any(part in text for text in texts), f"docs/{PAGE}: nothing says {part!r} any more"


def test_a_row_is_whole() -> None:
    for row in (*rows(), *table(PAGE, "Errors")):
        assert all(row), row
        assert len(row) == len(rows()[0] if row in rows() else table(PAGE, "Errors")[0])


def test_a_kind_of_error_has_a_row() -> None:
    known = {cell for row in table(PAGE, "Errors") for cell in re.findall(r"`(\w+)`", row[0])}
    lacking = {name: module for name, module in raised() if name not in known}
    assert not lacking, (
        f"docs/{PAGE} has no row under 'Errors' for {lacking}: add | `Name` | when | what to do |"
    )
    gone = known - {name for name, _ in raised()}
    assert not gone, f"docs/{PAGE} has rows for errors that nothing raises: {gone}"


def test_an_error_says_what_was_expected_or_what_to_do() -> None:
    seen = list(errors())
    assert len(seen) > 300
    silent = [
        f"{said.module}:{said.line} {name}: {said.text}"
        for name, said in seen
        if not said.text.endswith("…")  # a reason, which somebody else worded, and which says it
        and not REMEDY.search(plain(said.text))
    ]
    assert silent == []
