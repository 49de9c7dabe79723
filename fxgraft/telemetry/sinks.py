"""Sinks: where events go. Each is a callable that takes an `Event`."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from typing import Any

from fxgraft.telemetry.events import Event
from fxgraft.telemetry.metrics import ALIASES
from fxgraft.util.line_file import LineFile

BULKY = frozenset({"run_began", "steps"})
"""Kinds that are long, and made for a log that is read by a program."""


class Memory:
    """Keeps events in a list, ``events``."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of_kind(self, kind: str) -> list[Event]:
        """The events of one kind, in order.

        Args:
            kind: for example ``"seed_stage"``.
        """
        return [event for event in self.events if event.kind == kind]


class JsonLines:
    """Appends each event to a file as a line of JSON, each line in one write.

    An existing file is continued: a resumed run continues its log, and if a log has several runs, the last
    one is shown. Missing folders are created. The file is closed by `close`, at the end of a ``with`` block,
    or when the sink is deleted.

    Args:
        path: the file; events are appended, in UTF-8.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._file = LineFile(path)

    def __call__(self, event: Event) -> None:
        self._file.write(json.dumps(_finite(dataclasses.asdict(event)), allow_nan=False))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Logging:
    """Sends events to a ``logging.Logger``: violations and failures as warnings, metrics as debug.

    Args:
        logger: by default ``logging.getLogger("fxgraft.events")``.
    """

    _LEVELS = {
        "violation_recorded": logging.WARNING,
        "gradients_dropped": logging.WARNING,
        "seed_stalled": logging.WARNING,
        "prefetch_failed": logging.WARNING,
        "rollback": logging.WARNING,
        "metrics": logging.DEBUG,
        "steps": logging.DEBUG,
        "run_began": logging.DEBUG,
    }

    def __init__(self, logger: logging.Logger | None = None):
        self._logger = logger or logging.getLogger("fxgraft.events")

    def __call__(self, event: Event) -> None:
        level = self._LEVELS.get(event.kind, logging.INFO)
        data = dict(event.data)
        self._logger.log(level, "step %d: %s %s %s", event.step, event.kind, event.seed or "", data)


class TensorBoard:
    """Writes metrics as scalars (``fxgraft/seed/alpha/<seed>``) and other events as text.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar`` and
            ``add_text``.
        aliases: whether to write each metric under its WP-101 name (``kasmina.seed.alpha/<seed>``), too.
    """

    def __init__(self, writer: Any, aliases: bool = False):
        self._writer, self._aliases = writer, aliases

    def __call__(self, event: Event) -> None:
        if event.kind in BULKY:
            return
        if event.kind != "metrics":
            text = json.dumps({"seed": event.seed, **event.data})
            self._writer.add_text(event.kind, text, global_step=event.step)
            return
        for name, value in scalars(event, self._aliases).items():
            self._writer.add_scalar(name, value, global_step=event.step)


class WeightsAndBiases:
    """Logs metrics to a run of Weights & Biases, as ``fxgraft/seed/alpha/<seed>``, over ``fxgraft/step``.

    The summary of the run has the stage of each seed (``seed_stage/<seed>``), and its configuration the host.

    Args:
        run: what ``wandb.init()`` returned.
        commit: False: the metrics are part of the row of your next ``run.log`` (W&B discards rows whose step
            is lower than the last, so the sink must not add rows between yours). True: each event is a row,
            for a run in which you log nothing yourself.
        aliases: whether to log each metric under its WP-101 name (``kasmina.seed.alpha/<seed>``), too.
    """

    def __init__(self, run: Any, commit: bool = False, aliases: bool = False):
        self._run, self._commit, self._aliases = run, commit, aliases
        run.define_metric("fxgraft/step", hidden=True)
        for names in ("fxgraft/*", *(["kasmina.*"] if aliases else [])):
            run.define_metric(names, step_metric="fxgraft/step")

    def __call__(self, event: Event) -> None:
        if event.kind == "metrics":
            row = {"fxgraft/step": event.step, **scalars(event, self._aliases)}
            self._run.log(row, commit=self._commit)
        elif event.kind == "seed_stage":
            self._run.summary[f"seed_stage/{event.seed}"] = event.data["stage"]
        elif event.kind == "run_began":
            facts = {key: event.data[key] for key in ("host", "parameters", "versions")}
            self._run.config.update({"fxgraft": facts}, allow_val_change=True)


def scalars(event: Event, aliases: bool = False) -> dict[str, float]:
    """The values of a ``metrics`` event: ``metric/seed`` of a seed, ``metric`` of the whole host."""
    return {
        f"{metric}/{seed}" if seed else metric: value
        for metric, values in event.data.items()
        if aliases or metric not in ALIASES
        for seed, value in values.items()
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinities: ``"nan"``, ``"inf"`` and ``"-inf"`` are written instead."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
