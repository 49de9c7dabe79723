"""Commands about a run: report and watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxgraft.cli.app import JSON, app, report_errors, tell
from fxgraft.report import read

RUN = Annotated[Path, typer.Argument(help="What a JsonLines sink wrote, or a folder with events.jsonl.")]


@app.command()
def report(
    run: RUN,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; by default beside the log.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Turn the log of a run into a page: one HTML file that opens offline. --json tells its numbers."""
    with report_errors():
        if as_json:
            tell("", read(run).summary(), as_json)
            return
        from fxgraft.report.page import write  # needs the extra `report`

        typer.echo(f"wrote {write(run, output)}")


@app.command()
def watch(
    run: RUN,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.05)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show what there is, and end.")] = False,
    as_json: JSON = False,
) -> None:
    """Follow a run in the terminal while it trains. Ctrl-C ends the watching, not the run."""
    from fxgraft.report import screen

    with report_errors():
        if as_json:
            tell("", read(run).summary(), as_json)
        elif once:
            screen.show(run)
        else:
            screen.follow(run, every)
