"""The table of scores in ``docs/guides/explore.md``, from the results."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.explore.plan import RANDOM_SEEDS

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "explore.md"
BEGIN, END = "<!-- scores: begin -->", "<!-- scores: end -->"

CALLED = {
    "GPT": "character GPT",
    "CNN": "digits, CNN",
    "MLP": "digits, MLP",
    "Fashion": "Fashion-MNIST, CNN",
}
"""The workloads, those first whose truth repeats."""

COLUMNS = {
    "default": "adam times parameters",
    "`expected_and_parameters`": "parameters and adam",
    "`parameters`": "parameters",
    "`expected`": "adam",
    "`contribution`": "contribution, radius 0.03, 100 steps",
}
"""The scores of the library that are compared, and what the plan calls them."""


def lines_of(data: dict[str, Any]) -> list[str]:
    """The table: for each workload rho and regret of each score; and the means of those measured on all."""
    head = " | ".join(f"{name}: rho | regret" for name in COLUMNS)
    lines = [
        f"| workload | candidates | random seeds | truth repeats | cost of the default | {head} |",
        "|---|---|---|---|---|" + "---|" * (2 * len(COLUMNS)),
    ]
    found: dict[str, list[tuple[float, float]]] = {score: [] for score in COLUMNS.values()}
    for name, called in CALLED.items():
        results = data["workloads"][name]
        rows = {row["score"]: row for row in results["scores"]}
        cells = []
        for score in COLUMNS.values():
            if (row := rows.get(score)) is not None:
                found[score].append((row["spearman"], row["regret"]))
            cells.append("| |" if row is None else f"{row['spearman']:.2f} | {row['regret']:.2f} |")
        many, planned = results["random_seeds"], RANDOM_SEEDS[name]
        seeds = f"{many} of {planned} planned" if many < planned else str(many)
        lines.append(
            f"| {called} | {len(results['candidates'])} | {seeds} | {results['repeats']:.2f} "
            f"| {results['cost']:.3f} | {' '.join(cells)}"
        )
    means = [
        f"{statistics.fmean(r for r, _ in pairs):.2f} | {statistics.fmean(r for _, r in pairs):.2f} |"
        if len(pairs) == len(CALLED)
        else "| |"
        for pairs in found.values()
    ]
    return [*lines, f"| mean | | | | | {' '.join(means)}"]


def into_page(text: str, data: dict[str, Any]) -> str:
    """The text of the page with this table in it."""
    head, _, rest = text.partition(BEGIN)
    table = "\n".join(lines_of(data))
    return f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"
