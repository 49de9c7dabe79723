"""What all commands share: the application, its arguments, and how errors are reported."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer

import fxgraft
from fxgraft.cli._target import TargetError, load
from fxgraft.errors import CommandError, FxGraftError
from fxgraft.host.host import Host
from fxgraft.host.tracing import trace
from fxgraft.util.reading import InvalidDataError, decode

EXTRAS = {
    "jinja2": "report",
    "matplotlib": "demo",
    "plotly": "report",
    "pydot": "show",
}
"""What only some commands need, and the extra that has it."""

CANNOT = 1
USAGE = 2

app = typer.Typer(
    help="Grow a PyTorch model while it trains.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TARGET = Annotated[
    str,
    typer.Argument(
        help="module:callable or file.py:callable; it returns (model, example_args[, example_kwargs])."
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fxgraft {fxgraft.__version__}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Grow a PyTorch model while it trains."""


def host_of(target: str) -> Host:
    """The traced model that ``target`` gives."""
    loaded = load(target)
    return trace(loaded.model, loaded.example_args, loaded.example_kwargs)


def print_result(text: str, data: Any, as_json: bool) -> None:
    """Print one or the other."""
    typer.echo(json.dumps(data, indent=2) if as_json else text)


@contextmanager
def report_missing_extras() -> Iterator[None]:
    """Turn a missing package of an extra into a line on stderr that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        print(f"fxgraft: this needs {package}: pip install 'fxgraft[{EXTRAS[package]}]'", file=sys.stderr)
        raise typer.Exit(CANNOT) from error


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn the errors that are meant for users into a line on stderr and an exit code."""
    try:
        with report_missing_extras():
            yield
    except (FxGraftError, ValueError, OSError) as error:
        print(f"fxgraft: {error}", file=sys.stderr)
        is_usage = isinstance(error, (TargetError, CommandError, ValueError))
        raise typer.Exit(USAGE if is_usage else CANNOT) from error


def options_of(text: str) -> dict[str, Any]:
    """The JSON object that ``--config`` is."""
    try:
        found = decode(text)
    except InvalidDataError as error:
        raise ValueError(f"--config: expected a JSON object such as '{{\"hidden\": 32}}'; {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--config: expected a JSON object; got {text}")
    return found
