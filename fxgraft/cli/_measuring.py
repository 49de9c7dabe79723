"""The command bench: what fxgraft costs on a model of the user's."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from fxgraft.cli._target import load
from fxgraft.cli.app import JSON, TARGET, app, options_of, print_result, report_errors
from fxgraft.cost import CostReport, Measurement
from fxgraft.util.tables import rich_table


@app.command()
def bench(
    target: TARGET,
    slot: Annotated[str | None, typer.Option(help="Where a seed grows; by default near the middle.")] = None,
    blueprint: Annotated[str, typer.Option(help="What grows: a registered blueprint.")] = "mlp",
    config: Annotated[str, typer.Option(help="Options of the blueprint, as a JSON object.")] = "{}",
    backend: Annotated[
        str | None, typer.Option(help="Compile all sides by this one, e.g. inductor; by default eager.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of interleaved timing.")] = 15,
    steps: Annotated[int, typer.Option(help="Training steps of each side in a round.")] = 4,
    as_json: JSON = False,
) -> None:
    """Measure a training step of a model, bare and in a host, interleaved; and what changes cost."""
    with report_errors():
        made = load(target)
        cost = Measurement(
            made.model,
            made.example_args,
            made.example_kwargs,
            slot=slot,
            blueprint=blueprint,
            config=options_of(config),
            rounds=rounds,
            steps=steps,
            backend=backend,
        ).run()
        if as_json:
            print_result("", cost.to_dict(), as_json)
        else:
            show(cost, rounds, Console())


def show(cost: CostReport, rounds: int, console: Console) -> None:
    """Print a table, and what else there is to say."""
    rows = [
        (side.name, f"{side.ms:.3f}", f"{side.ratio:.3f}", f"{side.low:.3f} to {side.high:.3f}")
        for side in cost.steps
    ]
    numbers = ("ms", "ratio", "lowest to highest")
    console.print(rich_table(("a training step of", *numbers), rows, right=numbers))
    lines = [
        f"Medians of {rounds} rounds. The bare model against itself shows what the ratios are uncertain by;",
        "those with a seed contain the seed's own work.",
        f"seed: {cost.blueprint} at {cost.slot}, {cost.parameters:,} parameters",
        f"trace {cost.trace_ms:.1f} ms, germinate {cost.germinate_ms:.1f} ms, cull {cost.cull_ms:.1f} ms",
    ]
    if cost.first_step_s:
        said = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in cost.first_step_s.items())
        lines.append(f"first steps, with what they compile: {said}")
        lines.append(f"compiled while alpha moved: {cost.recompiles} graphs")
    environment = cost.environment
    lines.append(
        f"python {environment['python']}, torch {environment['torch']}, {environment['threads']} threads on "
        f"{environment['cores']} cores"
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
