"""Verdicts and tables of ``benchmarks.perf_comparison``."""

from __future__ import annotations

from typing import Any

from benchmarks import environment

BUDGETS = {("eager", "seeds"): 1.05, ("inductor", "seeds"): 1.02, ("inductor", "dormant"): 0.01}
"""The ratios that the design allows; of a dormant host, how much more than that of A to A."""


def judge(rows: list[dict[str, Any]], backend: str) -> None:
    """Write to each row its budget, and whether it keeps it."""
    same = next(row for row in rows if row["arm"] == "baseline again")["ratio"]["wall"]["median"]
    for row in rows:
        if "by hand" in row.get("against", ""):
            row["budget"] = BUDGETS[backend, "seeds"]
        elif (backend, row["arm"]) == ("inductor", "disabled"):
            row["budget"] = max(same, 1.0) + BUDGETS["inductor", "dormant"]
        else:
            continue
        row["kept"] = row["ratio"]["wall"]["median"] <= row["budget"]


def markdown(record: dict[str, Any]) -> str:
    """The tables."""
    head = (
        "| arm | ms a step | against | ratio | range | CPU time | of baseline | budget | loss | difference |"
    )
    parts = ["# What seeds cost", environment.as_markdown(record["environment"]), f"`{record['command']}`"]
    parts.append(record["note"])
    for table in record["tables"]:
        lines = [head, "|---" * head.count(" | ") + "|---|"]
        lines += map(_line, table["rows"])
        parts += [f"## {table['network']}, {table['backend']}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _line(row: dict[str, Any]) -> str:
    cells = [row["arm"], f"{row['median_step_ms']:.2f}"]
    if "ratio" in row:
        wall, cpu = row["ratio"]["wall"], row["ratio"]["cpu"]
        cells += [row["against"], f"{wall['median']:.3f}", f"{wall['low']:.3f} to {wall['high']:.3f}"]
        cells += [f"{cpu['median']:.3f}"]
    else:
        cells += ["", "", "", ""]
    budget = f"{row['budget']:.3f} {'kept' if row['kept'] else '**missed**'}" if "budget" in row else ""
    difference = f"{row['loss_difference']:.1e}" if "loss_difference" in row else ""
    cells += [f"{row['ratio_to_baseline']['median']:.2f}", budget, f"{row['loss']:.4f}", difference]
    return f"| {' | '.join(cells)} |"


NOTE = """\
Ratios are of the time for a training step (forward, backward, AdamW, the manager's step): median and range
over the repeats. *CPU time* is the same ratio in processor time, which other processes on the machine do not
touch. *training*: seeds in isolation, learning by the trust objective; *blending*: under way to alpha 1.
*By hand* is the same network, seeds and weights included, in plain PyTorch (`benchmarks/by_hand.py`), without
the finite check on the seeds' gradients and without isolation checks."""
