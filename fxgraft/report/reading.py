"""Reads the JSON lines of a run. Any line may be torn, or be anything: it is counted, and left out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fxgraft.errors import FxGraftError
from fxgraft.report.exploration_columns import FIELDS, TEXTS
from fxgraft.report.run import Lane, LogLine, Run
from fxgraft.seeds.stage import Stage
from fxgraft.util.text import pluralize

LOG = "events.jsonl"
"""The name of the log in a run's folder."""

LAST_STEP = 10**12
"""A higher number of a step is no number of a step."""

Data = Mapping[str, Any]


class ReadError(FxGraftError):
    """There is no log to read."""


def find(path: str | os.PathLike[str]) -> Path:
    """The log of a run: the file itself, or ``events.jsonl`` in the folder."""
    found = Path(path)
    return found / LOG if found.is_dir() else found


def read(path: str | os.PathLike[str]) -> Run:
    """Read a whole log.

    Args:
        path: what a `fxgraft.telemetry.JsonLines` sink wrote, or a folder with an ``events.jsonl``.

    Raises:
        ReadError: there is no such file, or no line of it is an event.
    """
    file = find(path)
    reader = Reader()
    try:
        with file.open("rb") as lines:
            for line in lines:
                reader.feed(line)
    except OSError as error:
        raise ReadError(
            f"{file}: expected a log that sinks=[JsonLines(...)] wrote; cannot be read: {error.strerror}"
        ) from error
    run = reader.run
    if run.lines == run.unreadable:
        raise ReadError(f"{file}: expected JSON lines of events; none of its {run.lines} lines is one")
    return run


class Reader:
    """Reads the lines of a log one by one into ``run``."""

    def __init__(self) -> None:
        self.run = Run()
        self._of: dict[str, Callable[[int, str | None, Data], None]] = {
            "run_began": self._began,
            "seed_stage": self._stage,
            "steps": self._steps,
            "metrics": self._metrics,
            "contribution": self._contribution,
            "gradients_dropped": self._dropped,
            "violation_recorded": self._violation,
            "compiled": self._compiled,
            "command": self._command,
            "explored": self._explored,
        }

    def feed(self, line: str | bytes) -> None:
        """Read one line. Never raises: what is no event is counted.

        Args:
            line: a line of JSON, as text or in UTF-8.
        """
        if not line.strip():
            return
        self.run.lines += 1
        try:
            event = _without_half_characters(json.loads(line), line)
            kind, step, seed, data = event["kind"], event["step"], event["seed"], event["data"]
            if type(step) is not int or not 0 <= step <= LAST_STEP or not isinstance(data, dict):
                raise TypeError("no event")
            kind, seed = str(kind), None if seed is None else str(seed)
            take = self._of.get(kind)
            if take is not None:
                take(step, seed, data)
            self.run.step = max(self.run.step, step)
            if kind not in ("metrics", "steps"):
                self.run.log.append(LogLine(step, kind, seed, _describe_event(kind, data)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            self.run.unreadable += 1

    def _began(self, step: int, seed: str | None, data: Data) -> None:
        slots = [
            {"name": str(slot["name"]), "shape": [*map(int, slot["shape"])], "dtype": str(slot["dtype"])}
            for slot in data["slots"]
        ]
        born = [(str(born["name"]), dict(born)) for born in data["seeds"]]
        if step == 0 and self.run.host:  # not the same run, resumed: another one, in the same log
            before = self.run
            self.run = Run(lines=before.lines, unreadable=before.unreadable, earlier=before.earlier + 1)
        run = self.run
        if run.step > step or run.host:
            run.resumed.append((step, run.step))
            run.cut(step)
        run.host, run.parameters, run.slots = str(data["host"]), int(data["parameters"]), slots
        run.versions = {str(name): str(version) for name, version in data["versions"].items()}
        run.time = str(data["time"])
        for name, facts in born:
            lane = run.lanes.get(name)
            if lane is None or lane.stage.name != facts["stage"]:
                self._stage(step, name, facts)

    def _stage(self, step: int, seed: str | None, data: Data) -> None:
        if seed is None:
            raise TypeError("an event of a seed names it")
        stage, alpha, slot = Stage[data["stage"]], _number(data["alpha"]), str(data["slot"])
        parameters = None if data.get("parameters") is None else int(data["parameters"])
        lane = self.run.lanes.setdefault(seed, Lane(seed))  # from here on nothing can fail
        if stage is not Stage.CULLED:
            lane.slot, lane.source = slot, None if data.get("source") is None else str(data["source"])
            lane.blueprint, lane.mode = str(data.get("blueprint", "")), str(data.get("mode", ""))
            lane.parameters = lane.parameters if parameters is None else parameters
            lane.alphas.append((step, alpha))
        lane.stages.append((step, stage))

    def _steps(self, step: int, seed: str | None, data: Data) -> None:
        losses, times = data["loss"], data["ms"]
        first = step - len(losses) + 1
        if first < 0 or len(times) != len(losses):
            raise ValueError("as many losses as times, and no more than steps")
        new = [(first + i, _number(value)) for i, value in enumerate(losses) if value is not None]
        paced = [(first + i, _number(value)) for i, value in enumerate(times) if value is not None]
        parameters = data.get("parameters")
        parameters = None if parameters is None else int(parameters)
        self.run.losses += new
        self.run.times += [(at, ms) for at, ms in paced if math.isfinite(ms)]
        self.run.final_parameters = parameters if parameters is not None else self.run.final_parameters

    def _metrics(self, step: int, seed: str | None, data: Data) -> None:
        empty: Data = {}
        alphas, own, host = (next((data[n] for n in names if n in data), empty) for names in METRICS)
        for name, alpha in alphas.items():
            lane = self.run.lanes.get(name)
            if lane is None:
                continue
            lane.alphas.append((step, _number(alpha)))
            if name in own and _number(host.get(name, 0.0)):
                lane.ratios.append((step, _number(own[name]) / _number(host[name])))

    def _contribution(self, step: int, seed: str | None, data: Data) -> None:
        contribution = _number(data["contribution"])
        losses = [data.get(name) for name in ("loss_without", "loss_with")]  # missing in older logs
        without, with_seed = (None if loss is None else _number(loss) for loss in losses)
        lane = self.run.lanes.get(str(seed))
        if lane is not None:
            lane.contributions.append((step, contribution))
        # As the host is now: a seed that is not blended adds nothing to it.
        loss = with_seed if lane is not None and lane.alpha > 0 else without
        if loss is not None:
            self.run.held_out.append((step, loss))

    def _dropped(self, step: int, seed: str | None, data: Data) -> None:
        if lane := self.run.lanes.get(str(seed)):
            lane.dropped.append(step)

    def _violation(self, step: int, seed: str | None, data: Data) -> None:
        what, name = str(data["what"]), str(data["name"])
        magnitude = _number(data["magnitude"])
        self.run.violations.append({"step": step, "what": what, "name": name, "magnitude": magnitude})

    def _compiled(self, step: int, seed: str | None, data: Data) -> None:
        counts = {key: int(data[key]) for key in ("graphs", "artifacts", "uncompiled_calls")}
        reasons = [str(reason) for reason in data["recompiles"]]
        label, seconds = str(data["label"]), float(data["seconds"])
        self.run.compiles.append(
            {"step": step, "label": label, **counts, "seconds": seconds, "recompiles": reasons}
        )

    def _command(self, step: int, seed: str | None, data: Data) -> None:
        command = data["command"]
        if command is not None and not isinstance(command, dict):
            raise TypeError("a command is an object")
        row = {"accepted": bool(data["accepted"]), "reason": str(data["reason"]), "command": command}
        self.run.commands.append({"step": step, "seed": seed, **row})

    def _explored(self, step: int, seed: str | None, data: Data) -> None:
        rows = []
        for row in data["rows"]:
            found: dict[str, Any] = {name: str(row[name]) for name in TEXTS}
            given = {name: row.get(name) for name in FIELDS}  # older logs have fewer
            found |= {name: None if one is None else _number(one) for name, one in given.items()}
            layers = {name: row.get(name) for name in ("widens", "deepens")}
            found |= {name: (str(one[0]), int(one[1])) for name, one in layers.items() if one}
            command = row.get("command") or {}
            found["command"] = {"source": command.get("source"), "config": dict(command.get("config") or {})}
            rows.append(found)
        self.run.explorations.append((step, rows))


METRICS = (
    ("fxgraft/seed/alpha", "kasmina.seed.alpha"),
    ("fxgraft/seed/gradient_norm", "kasmina.seed.isolation.seed_norm"),
    ("fxgraft/seed/host_gradient_norm", "kasmina.seed.isolation.host_norm"),
)
"""What is read of a ``metrics`` event; older logs have the second names only."""


def _describe_event(kind: str, data: Data) -> str:
    """The data of an event, in a line."""
    if kind == "run_began":
        return f"{data['host']}, {len(data['slots'])} slots, {len(data['seeds'])} seeds"
    if kind == "seed_stage":
        return f"{data['stage']} at {data['slot']}, alpha {_number(data['alpha']):g}"
    if kind == "explored":
        return f"{len(data['rows'])} candidates in {data['steps']} steps"
    if kind == "compiled":
        graphs = pluralize(data["graphs"], "graph")
        return f"{data['label']}: {graphs} compiled here, {data['artifacts']} by the compiler process"
    if kind == "command":
        command = dict(data["command"] or {"type": "a message that could not be read"})
        said = " ".join(
            [str(command.pop("type", "")), *(f"{k}={_short(v)}" for k, v in command.items() if v)]
        )
        return said if data["accepted"] else f"{said} refused: {_short(data['reason'])}"
    return ", ".join(f"{key} {_short(value)}" for key, value in data.items())


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _number(value: Any) -> float:
    """A float; JSON lines hold ``"nan"``, ``"inf"`` and ``"-inf"`` as text."""
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise ValueError(f"no number: {value!r}")
    return float(value)


def _without_half_characters(event: Any, line: str | bytes) -> Any:
    """``event``, where halves of surrogate pairs, which no file and no terminal takes, are question marks."""
    escape: Any = "\\ud" if isinstance(line, str) else b"\\ud"
    if escape not in line.lower():
        return event
    return json.loads(json.dumps(event, ensure_ascii=False).encode(errors="replace"))
