"""What a benchmark hands back: rows, each a measured figure beside its budget."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.budgets import Budget


@dataclass(frozen=True)
class Spread:
    """Median and range over repeats."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        each = list(values)
        return cls(statistics.median(each), min(each), max(each), len(each))

    @classmethod
    def exactly(cls, value: float) -> Spread:
        """Of a count, or anything else that is the same in every run."""
        return cls(value, value, value, 1)


@dataclass(frozen=True)
class Row:
    """One line of the results.

    Attributes:
        question: the benchmark that it is from, its name on the command line.
        workload: what was trained.
        mode: how it ran: eager, or how it was compiled.
        what: what was measured.
        against: what it is measured against; empty for a figure that stands alone.
        measured: the figure.
        unit: of it: ``"x"`` for a ratio to ``against``, else ``"s"``, ``"ms"``, ``"MiB"``, ``"compiles"``...
        budget: what the design allows; None where it sets no limit.
        sides: the absolute figures behind a ratio, in ``sides_unit``.
        sides_unit: their unit.
        note: what a reader has to know.
    """

    question: str
    workload: str
    mode: str
    what: str
    against: str
    measured: Spread
    unit: str
    budget: Budget | None = None
    sides: tuple[float, ...] = ()
    sides_unit: str = "ms"
    note: str = ""

    @property
    def key(self) -> str:
        """Names the row in the list of reasons."""
        return " / ".join((self.question, self.workload, self.mode, self.what, self.against))

    @property
    def is_met(self) -> bool:
        """Whether the median keeps the budget; True where there is none."""
        return self.budget is None or self.measured.median <= self.budget.limit

    @property
    def verdict(self) -> str:
        """``"met"``, or by how much it was missed; empty without a budget."""
        if self.budget is None:
            return ""
        if self.is_met:
            return "met"
        limit = self.budget.limit
        over = self.measured.median - limit
        share = f" ({over / limit:.1%})" if limit else ""
        return f"missed by {number(over)}{share}"

    def as_json(self) -> dict[str, Any]:
        """JSON types only; `from_json` reads it."""
        return {**asdict(self), "sides": list(self.sides), "verdict": self.verdict}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Row:
        """What `as_json` gave."""
        fields = {name: value for name, value in record.items() if name != "verdict"}
        fields |= {"measured": Spread(**record["measured"]), "sides": tuple(record["sides"])}
        fields["budget"] = Budget(**record["budget"]) if record["budget"] else None
        return cls(**fields)


def number(value: float) -> str:
    """Four significant digits at most, whole numbers as such."""
    if value == int(value):
        return str(int(value))
    return f"{value:.3f}" if 0.1 <= abs(value) < 10 else f"{value:.3g}"
