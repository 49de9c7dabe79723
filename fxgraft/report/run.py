"""A run, as read from its log."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from fxgraft.report._points import Points, upto
from fxgraft.seeds.stage import Stage


@dataclass(frozen=True)
class LogLine:
    """A line of the log that people read: what happened at a step, and to which seed."""

    step: int
    kind: str
    seed: str | None
    text: str


_step = attrgetter("step")


@dataclass
class Lane:
    """The course of a seed, or of several seeds that had the same name one after another.

    Attributes:
        name: the name of the seed.
        slot, source, blueprint, mode, parameters: of the last of them; ``parameters`` is None if unknown.
        stages: (step, stage that it entered), at least one.
        alphas, contributions, ratios: over the steps; a ratio is the norm of the seed's gradients over
            that of the host's.
        dropped: steps in which its gradients were not finite.
    """

    name: str
    slot: str = ""
    source: str | None = None
    blueprint: str = ""
    mode: str = ""
    parameters: int | None = None
    stages: list[tuple[int, Stage]] = field(default_factory=list)
    alphas: Points = field(default_factory=list)
    contributions: Points = field(default_factory=list)
    ratios: Points = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    @property
    def stage(self) -> Stage:
        """The last one."""
        return self.stages[-1][1]

    @property
    def alpha(self) -> float:
        """The last one."""
        return self.alphas[-1][1] if self.alphas else 0.0

    @property
    def contribution(self) -> float | None:
        """The last one that was measured, or None."""
        return self.contributions[-1][1] if self.contributions else None

    @property
    def ratio(self) -> float | None:
        """The last ratio of gradients, or None."""
        return self.ratios[-1][1] if self.ratios else None

    def spans(self, end: int) -> list[tuple[int, int, Stage]]:
        """(from, to, stage) of each stage but CULLED, which has no end.

        Args:
            end: the step at which the last stage ends.
        """
        until = [step for step, _ in self.stages[1:]] + [end]
        return [
            (step, to, stage)
            for (step, stage), to in zip(self.stages, until, strict=True)
            if stage is not Stage.CULLED
        ]

    def cut(self, step: int) -> None:
        """Delete everything after a step.

        Args:
            step: the last one to keep.
        """
        self.stages = [entry for entry in self.stages if entry[0] <= step]
        self.alphas, self.contributions, self.ratios = (
            upto(points, step) for points in (self.alphas, self.contributions, self.ratios)
        )
        self.dropped = [at for at in self.dropped if at <= step]


@dataclass
class Run:
    """Everything that the page and the screen show.

    Attributes:
        host, parameters, slots, versions, time: of the beginning, as in the event ``run_began``.
        step: the last step of any event.
        losses: of training steps.
        times: milliseconds from one step to the next.
        lanes: seed name -> its `Lane`.
        violations, compiles, commands: the data of those events, with ``step`` and ``seed``.
        explorations: (step, rows as dictionaries with what `fxgraft.report.exploration_columns` shows).
        log: all other events, without steps and metrics.
        resumed: (step that the run went on from, step that had been reached).
        earlier: the number of other runs in the log before this one.
        lines: the number of lines read.
        unreadable: the number of these that are no events.
        final_parameters: the last known parameter count of the host with its fossils; None in older logs.
        held_out: the loss on held-out data, wherever a seed was measured: with what is blended in.
    """

    host: str = ""
    parameters: int | None = None
    slots: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    time: str = ""
    step: int = 0
    losses: Points = field(default_factory=list)
    times: Points = field(default_factory=list)
    lanes: dict[str, Lane] = field(default_factory=dict)
    violations: list[dict[str, Any]] = field(default_factory=list)
    compiles: list[dict[str, Any]] = field(default_factory=list)
    commands: list[dict[str, Any]] = field(default_factory=list)
    explorations: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)
    log: list[LogLine] = field(default_factory=list)
    resumed: list[tuple[int, int]] = field(default_factory=list)
    earlier: int = 0
    lines: int = 0
    unreadable: int = 0
    final_parameters: int | None = None
    held_out: Points = field(default_factory=list)

    def cut(self, step: int) -> None:
        """Delete the course of the run after a step, from where it continues. The log stays.

        Args:
            step: the last one to keep.
        """
        self.losses, self.times, self.held_out = (
            upto(points, step) for points in (self.losses, self.times, self.held_out)
        )
        for lane in self.lanes.values():
            lane.cut(step)
        self.lanes = {name: lane for name, lane in self.lanes.items() if lane.stages}
        self.explorations = [found for found in self.explorations if found[0] <= step]
        self.step = step

    @property
    def median_ms(self) -> float | None:
        """The median time of a step in milliseconds."""
        return statistics.median(ms for _, ms in self.times) if self.times else None

    def stalls(self, most: int = 10) -> list[tuple[int, float, list[LogLine]]]:
        """The longest steps, above three times the median: (step, milliseconds, what happened then).

        Args:
            most: how many there are at most. Default 10.
        """
        median = self.median_ms or 0.0
        long = sorted((point for point in self.times if point[1] > 3 * median), key=lambda point: -point[1])
        log = sorted(self.log, key=_step)  # in order, but where the run went back
        found = []
        for step, ms in long[:most]:
            near = slice(bisect_left(log, step - 1, key=_step), bisect_right(log, step, key=_step))
            found.append((step, ms, log[near]))
        return found

    def summary(self) -> dict[str, Any]:
        """The most important numbers, in JSON types."""
        stages = [lane.stage for lane in self.lanes.values()]
        finite = [value for _, value in self.losses if math.isfinite(value)]
        longest = max((ms for _, ms in self.times), default=None)
        latest = {row["label"]: row for row in self.compiles}
        return {
            "host": self.host,
            "parameters": self.parameters,
            "final_parameters": self.final_parameters,
            "steps": self.step,
            "last_loss": self.losses[-1][1] if self.losses and math.isfinite(self.losses[-1][1]) else None,
            "lowest_loss": min(finite, default=None),
            "held_out_loss": next((loss for _, loss in reversed(self.held_out) if math.isfinite(loss)), None),
            "seeds": len(stages),
            "kept": stages.count(Stage.FOSSILIZED),
            "culled": stages.count(Stage.CULLED),
            "live": sum(stage in (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING) for stage in stages),
            "violations": len(self.violations),
            "commands": len(self.commands),
            "refused": sum(not command["accepted"] for command in self.commands),
            "graphs": sum(row["graphs"] for row in latest.values()),
            "artifacts": sum(row["artifacts"] for row in latest.values()),
            "uncompiled_calls": sum(row["uncompiled_calls"] for row in latest.values()),
            "compile_seconds": sum(row["seconds"] for row in latest.values()),
            "median_ms": self.median_ms,
            "longest_ms": longest,
            "resumed": len(self.resumed),
            "earlier_runs": self.earlier,
            "lines": self.lines,
            "unreadable": self.unreadable,
        }
