"""The log of what a controller said and asked: one line of JSON for each command and measurement.

{"step": 41, "command": {"type": "SEED", "slot": "relu", ...}, "reply": {"accepted": true, ...}}
{"step": 91, "measured": {"seed": "mlp_at_relu", "at": 1.0, "contribution": 0.012}}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fxgraft import commands
from fxgraft.commands import Command, Reply
from fxgraft.errors import CommandError
from fxgraft.util.line_file import LineFile


@dataclass(frozen=True)
class Entry:
    """A line of the log: a command with its reply, or a measurement.

    Attributes:
        step: the number of the training step, from 1.
        command: what the controller asked for; None in a measurement.
        reply: what came of the command; None in a measurement.
        measured: (seed, alpha, contribution), the contribution in units of the loss; None with a command.
    """

    step: int
    command: Command | None = None
    reply: Reply | None = None
    measured: tuple[str, float, float] | None = None

    def to_json(self) -> str:
        """The entry as one line of JSON. A contribution that is not finite becomes null."""
        line: dict[str, Any] = {"step": self.step}
        if self.command is not None and self.reply is not None:
            line |= {"command": commands.to_dict(self.command), "reply": self.reply.to_dict()}
        if self.measured is not None:
            seed, at, found = self.measured
            line["measured"] = {
                "seed": seed,
                "at": at,
                "contribution": found if math.isfinite(found) else None,
            }
        return json.dumps(line, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """The inverse of `to_json`.

        Args:
            text: a line of a log.

        Raises:
            CommandError: it is no such line.
        """
        try:
            line = json.loads(text)
            step, measured = line["step"], line.get("measured")
            if type(step) is not int:
                raise TypeError(f"step: expected a whole number; got {step!r}")
            if measured is not None:
                return cls(step, measured=_measurement(measured))
            return cls(step, commands.parse(line["command"]), Reply(**line["reply"]))
        except CommandError:
            raise
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise CommandError(
                f"expected step, command and reply; got {text[:80]!r}: {type(error).__name__}: {error}"
            ) from error


def _measurement(line: Mapping[str, Any]) -> tuple[str, float, float]:
    found = line["contribution"]
    return str(line["seed"]), float(line["at"]), math.nan if found is None else float(found)


MAX_LINE = 2 * commands.MAX_BYTES
"""Characters of a line in a log, at most."""


class Recorder:
    """Appends entries to a file, each line in one write: a run that is killed leaves whole lines.

    Args:
        path: the file; it is continued if it exists, and missing folders are created.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._file = LineFile(path)

    def write(self, entry: Entry) -> None:
        """Append one entry.

        Args:
            entry: a command with its reply, or a measurement.
        """
        self._file.write(entry.to_json())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """Read the entries of a log, one by one.

    Args:
        path: a file that a `Recorder` wrote.

    Raises:
        CommandError: a line is no entry; says its number.
    """
    with Path(path).open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(iter(partial(lines.readline, MAX_LINE), ""), 1):
            if len(line) == MAX_LINE:
                raise CommandError(
                    f"{path}, line {number}: is longer than {MAX_LINE} characters, which are the most; "
                    "expected one entry"
                )
            if line.strip():
                try:
                    yield Entry.from_json(line)
                except CommandError as error:
                    raise CommandError(f"{path}, line {number}: {error}") from error
