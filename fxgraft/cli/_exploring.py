"""The command explore: where a model of the user's should grow."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.live import Live

from fxgraft.cli._target import Task, load_task
from fxgraft.cli.app import JSON, app, print_result, report_errors
from fxgraft.explore import Exploration, scoring
from fxgraft.host.host import Host
from fxgraft.host.tracing import trace
from fxgraft.manager.manager import SeedManager
from fxgraft.util import validate

TASK = Annotated[
    str,
    typer.Argument(
        help="module:callable or file.py:callable; it returns (model, batches, loss[, held_out]): pairs of "
        "inputs and targets, and a function of outputs and targets."
    ),
]


@app.command()
def explore(
    target: TASK,
    slots: Annotated[str, typer.Argument(help="Where: a name, or a glob such as 'layer1.*'.")] = "auto",
    steps: Annotated[int, typer.Option(help="Training steps in which candidates learn.")] = 100,
    warm_up: Annotated[int, typer.Option(help="Training steps before.")] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 1e-3,
    blueprint: Annotated[
        list[str] | None, typer.Option(help="What may grow; several times for several. By default all.")
    ] = None,
    score: Annotated[str, typer.Option(help="What candidates are ranked by.")] = scoring.DEFAULT,
    picture: Annotated[
        Path | None, typer.Option(help="Save the graph, coloured by contribution: .svg, .png or .html.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Train a model for a while, let candidates learn beside it, and say where it should grow.

    In a terminal the table is live meanwhile.
    """
    with report_errors():
        validate.integer("--warm-up", warm_up)
        validate.number("--lr", lr, 0)
        if picture is not None:
            _check(picture)
        live = sys.stdout.isatty() and not as_json
        found = _explored(load_task(target), slots, steps, warm_up, lr, blueprint, score, live)
        print_result(str(found), found.to_dict(), as_json)
        if picture is not None:  # last: what was found is printed, even where no picture can be drawn
            found.show().save(picture)


def _check(picture: Path) -> None:
    """Before the training: its extra is there, and the name's ending is one that can be written."""
    from fxgraft.report.host_picture import SUFFIXES  # on demand: an extra

    if picture.suffix not in SUFFIXES:
        raise ValueError(f"--picture: expected a name ending in {', '.join(SUFFIXES)}; got {picture.name!r}")


def _explored(
    task: Task,
    slots: str,
    steps: int,
    warm_up: int,
    lr: float,
    names: list[str] | None,
    score: str,
    live: bool,
) -> Exploration:
    host = trace(task.model, _arguments(task.batches[0][0]))
    optimizer = torch.optim.AdamW(host.parameters(), lr)
    manager = SeedManager(host, optimizer)
    done = 0

    def train(more: int) -> None:
        nonlocal done
        for _ in range(more):
            inputs, target = task.batches[done % len(task.batches)]
            optimizer.zero_grad()
            loss = task.loss_of(host(*_arguments(inputs)), target)
            loss.backward()
            optimizer.step()
            manager.step(loss)
            done += 1

    train(warm_up)
    found = manager.explore(
        slots, evaluate=lambda: _losses(host, task), steps=steps, blueprints=names or None, score=score
    )
    with Live(found, transient=True) if live else nullcontext():
        train(steps)
    return found


def _losses(host: Host, task: Task) -> list[float]:
    host.eval()
    return [float(task.loss_of(host(*_arguments(inputs)), target)) for inputs, target in task.held_out]


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
