"""The terminal: live progress bars and a table of seeds; plain lines where the output is a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fxgraft.demo.controller import Action, Blend, Cull, Fossilize, Germinate
from fxgraft.demo.records import Record, SeedRow
from fxgraft.demo.summary import ARMS
from fxgraft.seeds.colours import STAGE_COLOURS

STAGE_STYLE = {stage.name: colour for stage, colour in STAGE_COLOURS.items()}
REFRESH_EVERY = 5  # training steps


class View:
    """A watcher of the runs. Use it as a context manager.

    Args:
        steps: of one run.
        random_seeds: how many runs each arm has.
        console: where to; the standard output by default.
    """

    def __init__(self, steps: int, random_seeds: int, console: Console | None = None):
        self.console = console or Console(highlight=False)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
        self._progress = Progress(TextColumn("{task.description:<13}"), *columns)
        total = steps * random_seeds
        self._bars = {arm: self._progress.add_task(arm, total=total, start=False, note="") for arm in ARMS}
        self._seeds = seed_table([], "")
        self._events: list[str] = []
        self._live = Live(self._screen(), console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> View:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def step(self, record: Record, done: int, seeds: Sequence[SeedRow]) -> None:
        """Advance the bar of an arm, and show its seeds."""
        bar = self._bars[record.arm]
        if done == 1:
            self._progress.start_task(bar)
        self._progress.update(bar, advance=1, note=f"loss {record.losses[-1]:.3f}")
        if done % REFRESH_EVERY == 0:
            if record.arm == "grown":
                self._seeds = seed_table(seeds, f"seeds of run {record.random_seed}, step {done}")
            self._refresh()

    def acted(self, record: Record, step: int, action: Action) -> None:
        """Tell of an action, of the grown arm."""
        if record.arm != "grown":
            return
        line = f"run {record.random_seed} step {step:>4}  {describe(action)}"
        self._events.append(line)
        if not self.console.is_terminal:
            self.console.print(line, soft_wrap=True)
        self._refresh()

    def finished(self, record: Record) -> None:
        """Tell that a run is over."""
        if not self.console.is_terminal:
            told = f"test accuracy {100 * record.accuracy:.1f} %, {record.parameters} parameters"
            self.console.print(f"run {record.random_seed} {record.arm:<13} {told}", soft_wrap=True)

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """The final tables and the verdict."""
        self.console.print(arm_table(summary))
        self.console.print(final_seed_table(summary["seeds"]))
        for line in facts(summary):
            self.console.print(line, soft_wrap=True)
        self.console.print()
        for sentence in summary["verdict"]:
            self.console.print(f"[bold]{sentence}[/bold]", soft_wrap=True)

    def _screen(self) -> Group:
        return Group(self._progress, self._seeds, *self._events[-6:])

    def _refresh(self) -> None:
        if self.console.is_terminal:
            self._live.update(self._screen(), refresh=True)


def describe(action: Action) -> str:
    """One action in words."""
    match action:
        case Germinate():
            return f"the loss is flat: germinate {action.seed} (the probe promised {action.gain:+.4f})"
        case Blend():
            return f"blend {action.seed} over {action.steps} steps (at alpha 1 it saves {action.gain:+.4f})"
        case Cull():
            return f"cull {action.seed} (contributes {action.gain:+.4f})"
        case Fossilize():
            return f"fossilize {action.seed} (contributes {action.gain:+.4f})"


def seed_table(rows: Sequence[SeedRow], title: str) -> Table:
    """The seeds of one run as they are now."""
    table = Table(title=title or "no seeds yet", title_justify="left")
    for name in ("seed", "slot", "stage"):
        table.add_column(name)
    for name in ("alpha", "contribution", "gradient ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        style = STAGE_STYLE.get(row.stage, "")
        numbers = (f"{row.alpha:.2f}", _number(row.contribution, "+.4f"), _number(row.gradient_ratio, ".3f"))
        table.add_row(row.name, row.slot, f"[{style}]{row.stage}[/]" if style else row.stage, *numbers)
    return table


def arm_table(summary: Mapping[str, Any]) -> Table:
    """Accuracy and cost of the arms."""
    table = Table(title="test accuracy over random seeds, and cost", title_justify="left")
    table.add_column("arm")
    for name in ("mean", "spread", "MFLOPs training", "MFLOPs decisions", "FLOPs/image"):
        table.add_column(name, justify="right")
    for arm in ARMS:
        accuracy, flops = summary[f"{arm}_accuracy"], summary["flops"][arm]
        cost = (f"{flops['training'] / 1e6:.0f}", f"{flops['decisions'] / 1e6:.0f}")
        shown = (f"{100 * accuracy['mean']:.2f} %", f"{100 * accuracy['spread']:.2f}")
        table.add_row(arm, *shown, *cost, f"{flops['inference_per_image']:.0f}")
    return table


def final_seed_table(seeds: Sequence[Mapping[str, Any]]) -> Table:
    """What became of every seed."""
    table = Table(title="seeds of the grown arm", title_justify="left")
    for name in ("run", "seed", "slot", "blueprint", "final stage"):
        table.add_column(name)
    table.add_column("contribution", justify="right")
    for seed in seeds:
        stage = f"[{STAGE_STYLE.get(seed['final_stage'], 'none')}]{seed['final_stage']}[/]"
        told = (str(seed["random_seed"]), seed["name"], seed["slot"], seed["blueprint"], stage)
        table.add_row(*told, f"{seed['contribution']:+.4f}")
    return table


def facts(summary: Mapping[str, Any]) -> list[str]:
    """The other measurements, a line each."""
    same = "the same, bit for bit" if summary["disabled_matches_baseline"] else "NOT the same"
    compared = summary["isolation_gradients_compared"]
    return [
        f"losses with seeds disabled and without fxgraft: {same}",
        f"isolation: {summary['isolation_violations']} of {compared} host gradients differed",
        f"compiles: {summary['compiles']} in all, {summary['recompiles_on_alpha']} while alpha changed",
        f"step of the grown arm: median {summary['median_step_ms']:.1f} ms, longest "
        f"{summary['longest_step_ms']:.0f} ms (with a germination, its probe and its compile), "
        f"{summary['longest_step_without_commands_ms']:.0f} ms (without commands)",
        f"took {summary['seconds']:.0f} s",
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
