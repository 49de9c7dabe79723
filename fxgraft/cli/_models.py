"""Commands about a model: explain, slots, plan, graph, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxgraft.cli.app import (
    JSON,
    TARGET,
    app,
    host_of,
    options_of,
    print_result,
    report_errors,
    report_missing_extras,
)
from fxgraft.commands import SEED
from fxgraft.manager.dispatch import arguments
from fxgraft.manager.manager import SeedManager


@app.command()
def explain(target: TARGET, as_json: JSON = False) -> None:
    """Tell which modules of a model are traced, which are not and why, and where its slots are."""
    with report_errors():
        explanation = host_of(target).explain()
        print_result(str(explanation), explanation.to_dict(), as_json)


@app.command()
def slots(
    target: TARGET,
    choice: Annotated[str, typer.Argument(help="A name, or a glob such as 'layer1.*.relu'.")] = "*",
    as_json: JSON = False,
) -> None:
    """List where seeds may germinate, with the shape and dtype of the value there."""
    with report_errors():
        found = host_of(target).slots.select(choice)
        rows = [
            {"name": s.name, "shape": list(s.shape), "dtype": str(s.dtype).removeprefix("torch.")}
            for s in found.values()
        ]
        print_result(str(found), rows, as_json)


@app.command()
def plan(
    target: TARGET,
    slot: Annotated[str, typer.Argument(help="Where: one of the slots.")],
    blueprint: Annotated[str, typer.Argument(help="What: a registered blueprint.")],
    mode: Annotated[str | None, typer.Option(help="residual, convex, gated or channelwise.")] = None,
    source: Annotated[str | None, typer.Option(help="An earlier slot, which the seed reads.")] = None,
    config: Annotated[str, typer.Option(help="Options of the blueprint, as a JSON object.")] = "{}",
    as_json: JSON = False,
) -> None:
    """Show what a germination would change: parameters, FLOPs, generated code. Changes nothing."""
    with report_errors():
        seed = SEED(slot=slot, blueprint=blueprint, mode=mode, source=source, config=options_of(config))
        planned = SeedManager(host_of(target)).plan(**arguments(seed))
        print_result(str(planned), planned.to_dict(), as_json)


@app.command()
def graph(
    target: TARGET,
    output: Annotated[Path, typer.Option("--output", "-o", help="A name ending in .svg, .png or .html.")],
    as_json: JSON = False,
) -> None:
    """Draw a model with its slots: one picture, or a page where each module opens."""
    with report_errors():
        written = host_of(target).show().save(output)
        print_result(f"wrote {written}", {"wrote": str(written)}, as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder for the results.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="The number of random seeds: runs of each arm.")] = 3,
    first_seed: Annotated[int, typer.Option(help="The first random seed.")] = 100,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one for each core, at most 4.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short runs, uncompiled: a smoke test.")] = False,
    as_json: JSON = False,
) -> None:
    """Grow a small GPT on a real text, and compare it with networks of fixed sizes (about 5 minutes)."""
    with report_missing_extras():
        from fxgraft.demo.__main__ import main  # needs the extra `demo`

        flags = [*(["--quick"] if quick else []), *(["--json"] if as_json else [])]
        flags += ["--processes", str(processes)] if processes is not None else []
        main(["--out", str(out), "--seeds", str(seeds), "--first-seed", str(first_seed), *flags])
