"""The command line, ``fxgraft`` or ``python -m fxgraft``. Needs typer: ``pip install 'fxgraft[cli]'``.

Exit codes: 0 done; 1 the model cannot be traced; 2 wrong usage, a target that cannot be loaded included.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from fxgraft.errors import FxGraftError
from fxgraft.host import Host
from fxgraft.target import TargetError, load
from fxgraft.tracing import trace

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


@app.callback()
def main() -> None:
    """Grow a PyTorch model while it trains."""


@app.command()
def explain(target: TARGET, as_json: JSON = False) -> None:
    """Tell which modules of a model are traced, which are not and why, and where its slots are."""
    with _errors_told():
        told = _host(target).explain()
    typer.echo(json.dumps(told.to_dict(), indent=2) if as_json else str(told))


def _host(target: str) -> Host:
    loaded = load(target)
    return trace(loaded.model, loaded.example_args, loaded.example_kwargs)


@contextmanager
def _errors_told() -> Iterator[None]:
    """Turn the errors that are meant for users into a line on stderr and an exit code."""
    try:
        yield
    except FxGraftError as error:
        print(f"fxgraft: {error}", file=sys.stderr)
        raise typer.Exit(USAGE if isinstance(error, TargetError) else CANNOT) from error
