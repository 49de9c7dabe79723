"""An explanation of a host as text: a tree of its modules, in which equal modules share a line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from fxgraft.util.text import pluralize

if TYPE_CHECKING:
    from fxgraft.host._explain import Explanation, ModuleReport

WIDTH = 110


def tree(explanation: Explanation) -> str:
    """A line that sums up, and the modules below, each under the one that holds it."""
    unsure = [f"not compared with its own code: {explanation.uncompared}"] if explanation.uncompared else []
    return "\n".join([_summary(explanation), *unsure, *_lines([explanation.root], "", "")])


def _summary(explanation: Explanation) -> str:
    reports = list(explanation.root.walk())
    traced = sum(report.status == "traced" for report in reports)
    own = traced + sum(bool(report.reason) and report.status != "shared" for report in reports)
    return (
        f"{explanation.root.kind}: {pluralize(explanation.slots, 'slot')}; "
        f"{traced} of {pluralize(own, 'module')} with code of their own {_are(traced)} traced; "
        f"{pluralize(explanation.fallbacks, 'call')} fell back"
    )


def _lines(siblings: list[ModuleReport], first: str, rest: str) -> Iterator[str]:
    """The lines of modules that are next to each other; what is alike is printed once."""
    runs = [list(run) for _, run in groupby(siblings, key=_shape)]
    for run in runs:
        is_last, is_root = run is runs[-1], not run[0].name
        yield from _wrapped(
            first + ("" if is_root else "└─ " if is_last else "├─ "), _describe_modules(run), rest
        )
        below = rest if is_root else rest + ("   " if is_last else "│  ")
        if guards := [guard for guard in run[0].guards if not guard.endswith(" is not None")]:
            yield from _wrapped(f"{below}   ", f"guards: {', '.join(guards)}", f"{below}   ")
        yield from _lines(list(run[0].children), below, below)


def _wrapped(first: str, text: str, rest: str) -> list[str]:
    following = rest + " " * (len(first) - len(rest) + 3)
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=following, drop_whitespace=True)


def _describe_modules(run: list[ModuleReport]) -> str:
    one = run[0]
    names = [report.name.rpartition(".")[2] for report in run]
    called = f"{names[0]} … {names[-1]}" if len(run) > 1 and names[0].isdigit() else ", ".join(names)
    alike = f", {len(run)} alike" if len(run) > 1 else ""
    who = f"{called} ({one.kind}{alike})" if one.name else one.kind
    return f"{who}: {', '.join(_facts(one))}"


def _facts(report: ModuleReport) -> Iterator[str]:
    match report.status:
        case "traced":
            yield "traced"
        case "boundary":
            yield f"{f'not traced: it {report.reason}; ' if report.reason else ''}its boundary is a slot"
        case "not traced":
            node = "; a node of the graph around it" if report.is_node else ""
            yield f"not traced: it {report.reason}{node}"
        case "left out":
            yield f"no slot: it {report.rejected[report.name]}"
        case "node":
            yield "a node of the graph around it"
        case "uncalled":
            yield "no graph calls it"
        case "container":
            yield "holds modules"
        case "shared":
            yield f"the same as {report.reason or 'the root'}"
    if report.status == "traced":
        yield pluralize(len(report.slots), "slot")
        if report.rejected:
            number = len(report.rejected)
            yield f"{pluralize(number, 'value')} {_are(number)} none"
    if report.seeds:
        yield f"seeds: {', '.join(report.seeds)}"
    if report.fallbacks:
        yield f"{pluralize(report.fallbacks, 'call')} fell back"


def _shape(report: ModuleReport) -> tuple[Any, ...]:
    """Equal for modules that are described in the same words."""
    return (
        report.kind,
        report.status,
        report.reason,
        report.is_node,
        len(report.slots),
        len(report.rejected),
        report.guards,
        report.fallbacks,
        report.seeds,
        tuple((child.name.rpartition(".")[2], _shape(child)) for child in report.children),
    )


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
