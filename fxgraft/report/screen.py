"""A run in the terminal, while it trains: what `fxgraft watch` shows, through rich."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from fxgraft.report._points import smooth
from fxgraft.report.exploration_table import exploration_table
from fxgraft.report.reading import Reader, find, read
from fxgraft.report.run import Lane, LogLine, Run
from fxgraft.seeds.stage import STAGE_COLOURS, Stage
from fxgraft.util.tables import rich_table


class Tail:
    """The lines that have come since the last look. A line is given once it is whole.

    A log that became shorter, or that is another file now, is read anew.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO | None = None
        self._known: tuple[int, int] | None = None
        self._rest = b""
        self.reader = Reader()

    def look(self) -> bool:
        """Read on; return whether there was anything new. A file that is not there has nothing."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        identity = status.st_dev, status.st_ino
        if self._file is None or identity != self._known or status.st_size < self._file.tell():
            self.close()
            self._file, self._known = self.path.open("rb"), identity
            self._rest, self.reader = b"", Reader()
        more = self._file.read()
        *lines, self._rest = (self._rest + more).split(b"\n")
        for line in lines:
            self.reader.feed(line)
        return bool(more)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


BLOCKS = "▁▂▃▄▅▆▇█"
TOLD_TWICE = ("seed_operation", "run_began")
"""Events whose content other events have too."""

MOST_SEEDS, MOST_ENTRIES = 14, 8
"""How many seeds and events there is room for: the latest."""


def show(path: str | os.PathLike[str], console: Console | None = None) -> None:
    """Show a run as it is now. Raises `ReadError` where there is no log."""
    (console or Console()).print(screen(read(path)))


def follow(
    path: str | os.PathLike[str],
    every: float = 1.0,
    console: Console | None = None,
    looks: int | None = None,
) -> None:
    """Show a run and its progress, until Ctrl-C.

    Args:
        path: the log, or its folder. It need not be there yet.
        every: seconds between two looks.
        console: where to; the standard output by default.
        looks: end after so many; None: never.
    """
    tail = Tail(find(path))
    waiting = Text(f"waiting for {tail.path}", style="dim")
    with Live(waiting, console=console, auto_refresh=False) as live:
        try:
            while looks is None or looks > 0:
                if tail.look():
                    live.update(screen(tail.reader.run), refresh=True)
                looks = None if looks is None else looks - 1
                time.sleep(every)
        except KeyboardInterrupt:
            pass
        finally:
            tail.close()


def screen(run: Run) -> RenderableType:
    """Everything that is shown."""
    return Group(
        Panel(_head(run), title=Text(run.host or "run", style="bold"), title_align="left"),
        seed_table(run),
        *_latest_exploration(run),
        *map(_line, [entry for entry in run.log if entry.kind not in TOLD_TWICE][-MOST_ENTRIES:]),
    )


def _latest_exploration(run: Run) -> list[RenderableType]:
    if not run.explorations:
        return []
    step, rows = run.explorations[-1]
    return [exploration_table(f"explored until step {step:,}", rows, MOST_ENTRIES)]


def seed_table(run: Run) -> RenderableType:
    """The seeds that are there, the latest."""
    lanes = [lane for lane in run.lanes.values() if lane.stage is not Stage.CULLED]
    if not lanes:
        return Text("no seeds", style="dim")
    numbers = ("alpha", "contributes", "gradients")
    rows = [_cells(lane) for lane in lanes[-MOST_SEEDS:]]
    return rich_table(("seed", "slot", "stage", *numbers), rows, right=numbers)


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """The course of some values in a line of blocks, on a logarithmic scale where all are positive."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    scaled = [math.log(value) for value in finite] if min(finite) > 0 else finite
    stretch = max(len(scaled) / width, 1.0)
    count = min(width, len(scaled))
    means = []
    for i in range(count):
        part = scaled[round(i * stretch) : max(round((i + 1) * stretch), round(i * stretch) + 1)]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    if low == high:
        return BLOCKS[len(BLOCKS) // 2] * count
    return "".join(BLOCKS[round((mean - low) / (high - low) * (len(BLOCKS) - 1))] for mean in means)


def _head(run: Run) -> RenderableType:
    facts = run.summary()
    loss = [value for _, value in run.losses]
    level = smooth([point for point in run.losses[-500:] if math.isfinite(point[1])])
    line = Text(f"step {run.step:,}")
    if level:
        line.append(f"   loss ≈ {level[-1][1]:.4g}")
    if facts["median_ms"] is not None:
        line.append(f"   {facts['median_ms']:.1f} ms/step (longest {facts['longest_ms']:.0f})")
    line.append(f"   seeds: {facts['live']} growing, {facts['kept']} kept, {facts['culled']} culled")
    alarm = "bold red" if facts["violations"] else "green"
    line.append(f"   {facts['violations']} isolation violations", style=alarm)
    if facts["unreadable"]:
        line.append(f"   {facts['unreadable']} unreadable lines", style="yellow")
    return Group(line, Text(sparkline(loss), style="blue")) if loss else line


def _cells(lane: Lane) -> tuple[RenderableType, ...]:
    colour = STAGE_COLOURS[lane.stage]
    contribution = "" if lane.contribution is None else f"{lane.contribution:+.4g}"
    ratio = "" if lane.ratio is None else f"{lane.ratio:.3g}"
    alpha = Text(f"{lane.alpha:.2f} ")
    alpha.append(_bar(lane.alpha), style=colour)
    return Text(lane.name), Text(lane.slot), Text(lane.stage.name, style=colour), alpha, contribution, ratio


def _bar(share: float, width: int = 6) -> str:
    full = round(min(max(share, 0.0), 1.0) * width) if math.isfinite(share) else 0
    return "█" * full + "░" * (width - full)


def _line(entry: LogLine) -> RenderableType:
    line = Text(f"{entry.step:>7}  {entry.kind}", style="dim", no_wrap=True, overflow="ellipsis")
    if entry.seed:
        line.append(f"  {entry.seed}", style="bold")
    return line.append(f"  {entry.text}")
