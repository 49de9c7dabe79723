"""The results as they are kept: JSON, of each benchmark its rows and where they come from."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

FILE = "budgets.json"
REASONS = Path(__file__).parent / "reasons.toml"


@dataclass(frozen=True)
class Part:
    """The results of one benchmark.

    Attributes:
        command: that made them.
        environment: the machine and the versions, as of `benchmarks.environment.describe`.
        minutes: how long it took.
        rows: what was found.
    """

    command: str
    environment: Mapping[str, Any]
    minutes: float
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON types only; `from_json` reads it."""
        rows = [row.as_json() for row in self.rows]
        return {
            "command": self.command,
            "environment": dict(self.environment),
            "minutes": self.minutes,
            "rows": rows,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Part:
        """What `as_json` gave."""
        return cls(**{**record, "rows": tuple(map(Row.from_json, record["rows"]))})


@dataclass(frozen=True)
class Record:
    """The results of all benchmarks, by name. Each may come from a run of its own."""

    parts: Mapping[str, Part] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """What was written to ``folder``; an empty record if nothing was."""
        path = folder / FILE
        if not path.exists():
            return cls()
        parts = json.loads(path.read_text(encoding="utf-8"))
        return cls({name: Part.from_json(part) for name, part in parts.items()})

    def write(self, folder: Path) -> None:
        """To ``folder``, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = {name: part.as_json() for name, part in self.parts.items()}
        (folder / FILE).write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")

    def with_part(self, name: str, part: Part, order: Iterable[str]) -> Record:
        """With one part new or anew, the parts in that order."""
        parts = {**self.parts, name: part}
        return Record({name: parts[name] for name in order if name in parts})

    @property
    def rows(self) -> list[Row]:
        """Of all parts."""
        return [row for part in self.parts.values() for row in part.rows]


def reasons() -> dict[str, dict[str, str]]:
    """Pattern of row keys (as of a shell) -> ``why`` their budget is missed, and what was ``tried``."""
    found: dict[str, dict[str, str]] = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    return found
