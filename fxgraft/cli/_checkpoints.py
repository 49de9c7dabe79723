"""Commands about a checkpoint: what is in it, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxgraft.checkpoint import file
from fxgraft.checkpoint.packing import unpack
from fxgraft.cli.app import JSON, app, report_errors, tell

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
        told: dict[str, Any] = {
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
                for seed in seeds
            ],
        }
        lines = [
            f"step {told['step']}, {told['tensors']} tensors, {size / 2**20:.2f} MiB",
            f"host: {told['host_tensors']} tensors",
            f"optimizers: {', '.join(told['optimizers']) or 'none'}",
            f"schedulers: {', '.join(told['schedulers']) or 'none'}",
            *map(_seed_line, told["seeds"]),
        ]
        tell("\n".join(lines), told, as_json)


@commands.command()
def verify(path: FILE, as_json: JSON = False) -> None:
    """Check every checksum. Ends with 1 if the file is damaged, or is no checkpoint."""
    with report_errors():
        _, tensors = file.read(path)
        tell(f"{path} is whole: {len(tensors)} tensors", {"whole": True, "tensors": len(tensors)}, as_json)


def _seed_line(seed: dict[str, Any]) -> str:
    where = f"{seed['blueprint']} at {seed['slot']}"
    line = f"seed {seed['name']}: {where}, {seed['stage']}, alpha {seed['alpha']:g}"
    return line if seed["registered"] else f"{line} (from code: load needs it in blueprints=)"
