"""The results as they are kept: a folder for each protocol, in it one JSON file for each run.

A protocol can take its learning rates from the tuning runs of another.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.worth.protocols import Protocol
from benchmarks.worth.training import Run

Records = dict[str, dict[str, Any]]

KEPT = (
    "short",
    "unknown",
    "unknown_extra",
    "tried",
    "tried_again",
    "tried_control",
    "copies",
    "copies_extra",
    "adapters",
    "widths",
    "brown",
    "long",
    "long_extra",
    "guesses",
    "measured",
)
"""Protocols whose results are committed; they share no random seed, or differ in the learning rate."""


def folder(protocol: Protocol, out: Path) -> Path:
    """Where the records of a protocol are."""
    return out / "worth" / protocol.name


def of(protocol: Protocol, out: Path) -> Records:
    """All records that a protocol knows of."""
    found = read(folder(protocol, out))
    if protocol.rates_of is not None:
        first = read(out / "worth" / protocol.rates_of)
        found |= {name: record for name, record in first.items() if record["run"]["tuning"]}
    return found


def read(folder: Path) -> Records:
    """All records in ``folder``, by the name of their run."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))
    return {run_of(record).name: record for record in found}


def everything(out: Path) -> Records:
    """The records of the protocols that are `KEPT`, whose names differ."""
    return {name: record for each in KEPT for name, record in read(out / "worth" / each).items()}


def write(folder: Path, record: dict[str, Any]) -> None:
    """Store a record; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run_of(record).name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.replace(path)


def run_of(record: dict[str, Any]) -> Run:
    """The run that a record is of."""
    return Run(**record["run"])
