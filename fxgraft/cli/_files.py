"""Commands about what a run has left: checkpoints, and its log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxgraft.checkpoint import file
from fxgraft.checkpoint.packing import unpack
from fxgraft.cli.app import JSON, app, print_result, report_errors
from fxgraft.report import read

FILE = Annotated[Path, typer.Argument(help="What manager.save() wrote.")]

commands = typer.Typer(help="Look into a checkpoint, and verify it.", no_args_is_help=True)
app.add_typer(commands, name="checkpoint")


@commands.command()
def inspect(path: FILE, as_json: JSON = False) -> None:
    """Tell what is in a checkpoint: its step, its seeds, how large it is. Runs no code from it."""
    with report_errors():
        manifest, tensors = file.read(path)
        run = unpack(manifest["run"], tensors)
        seeds = [unpack(seed, tensors) for seed in manifest["seeds"]]
        size = sum(tensor.nbytes for tensor in tensors.values())
        summary: dict[str, Any] = {
            "step": run["step"],
            "host_tensors": len(manifest["model"]),
            "tensors": len(tensors),
            "bytes": size,
            "optimizers": [optimizer["type"] for optimizer in manifest["optimizers"]],
            "schedulers": [scheduler["type"] for scheduler in manifest["schedulers"]],
            "seeds": [
                {
                    key: seed[key]
                    for key in ("name", "slot", "source", "blueprint", "registered", "stage", "alpha")
                }
                | {"copied_from": None if seed["spec"].get("call") is None else seed["config"].get("like")}
                for seed in seeds
            ],
        }
        lines = [
            f"step {summary['step']}, {summary['tensors']} tensors, {size / 2**20:.2f} MiB",
            f"host: {summary['host_tensors']} tensors",
            f"optimizers: {', '.join(summary['optimizers']) or 'none'}",
            f"schedulers: {', '.join(summary['schedulers']) or 'none'}",
            *map(_seed_line, summary["seeds"]),
        ]
        print_result("\n".join(lines), summary, as_json)


@commands.command()
def verify(path: FILE, as_json: JSON = False) -> None:
    """Check every checksum. Ends with 1 if the file is damaged, or is no checkpoint."""
    with report_errors():
        _, tensors = file.read(path)
        print_result(
            f"{path} is whole: {len(tensors)} tensors", {"whole": True, "tensors": len(tensors)}, as_json
        )


def _seed_line(seed: dict[str, Any]) -> str:
    where = f"{seed['blueprint']} at {seed['slot']}"
    line = f"seed {seed['name']}: {where}, {seed['stage']}, alpha {seed['alpha']:g}"
    if (block := seed["copied_from"]) is not None:
        return f"{line} (an inserted block: load copies {block} for it)"
    return line if seed["registered"] else f"{line} (from code: load needs it in blueprints=)"


RUN = Annotated[Path, typer.Argument(help="What a JsonLines sink wrote, or a folder with events.jsonl.")]


@app.command()
def report(
    run: RUN,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; by default beside the log.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Turn the log of a run into a page: one HTML file that opens offline. --json prints its numbers."""
    with report_errors():
        if as_json:
            print_result("", read(run).summary(), as_json)
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
            print_result("", read(run).summary(), as_json)
        elif once:
            screen.show(run)
        else:
            screen.follow(run, every)
