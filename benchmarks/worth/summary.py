"""``worth.json`` and the table of it: what the records of one protocol say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.worth import plot
from benchmarks.worth.analysis import Arms, estimate
from benchmarks.worth.arms import PRIMARY
from benchmarks.worth.plan import Plan
from benchmarks.worth.protocols import Protocol
from benchmarks.worth.questions import (
    LARGEST,
    below_envelope,
    best_smaller_share,
    share_of_large,
    unknown_size,
)
from benchmarks.worth.results import Records

FILE, TABLE = "worth.json", "worth.md"


def write(protocol: Protocol, records: Records, out: Path, picture: Path) -> None:
    """Write summary, table and plot; the workloads of which nothing has run are left out."""
    found = {name: workload(Arms(protocol, name, records)) for name in protocol.scales}
    found = {name: told for name, told in found.items() if told is not None}
    for name, told in found.items():
        told["missing_runs"] = [run.name for run in Plan(protocol, name, records).missing()]
    environments = {json.dumps(record["environment"], sort_keys=True) for record in records.values()}
    whole = {
        "protocol": protocol.name,
        "command": f"python -m benchmarks.worth --protocol {protocol.name}",
        "environments": [json.loads(each) for each in sorted(environments)],
        "workloads": found,
    }
    (out / FILE).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (out / TABLE).write_text(table(whole), encoding="utf-8")
    plot.draw({name: Arms(protocol, name, records) for name in found}, picture)
    print((out / TABLE).read_text(encoding="utf-8"))


def workload(arms: Arms) -> dict[str, Any] | None:
    """The answers for one workload; None if nothing has run."""
    if not arms.curves:
        return None
    primary = growth(arms, PRIMARY) if arms.seeds(PRIMARY) else {}
    envelope = primary.get("below_envelope") or {}
    unknown = primary.get("unknown_size") or {}
    names = list(dict.fromkeys(name for name, _ in arms.curves))
    return {
        "primary_arm": PRIMARY,
        "share_of_flops": primary.get("share_of_flops", {}).get("mean"),
        "share_of_flops_standard_error": primary.get("share_of_flops", {}).get("standard_error"),
        "share_of_seconds": primary.get("share_of_seconds", {}).get("mean"),
        "share_of_seconds_standard_error": primary.get("share_of_seconds", {}).get("standard_error"),
        "smaller_share_of_flops": best_smaller_share(arms),
        "below_envelope": envelope.get("mean"),
        "standard_error": envelope.get("standard_error"),
        "cost_of_unknown_size": unknown.get("over_the_sweep"),
        "best_fixed_at_full_cost": best_fixed(arms),
        "growth": {name: growth(arms, name) for name in names if not arms.arms[name].fixed},
        "ends": {name: ends(arms, name) for name in names},
    }


def growth(arms: Arms, name: str) -> dict[str, Any]:
    """The three questions for one arm."""
    return {
        "share_of_flops": share_of_large(arms, name, "flops"),
        "share_of_training_flops": share_of_large(arms, name, "training_flops"),
        "share_of_seconds": share_of_large(arms, name, "seconds"),
        "below_envelope": below_envelope(arms, name),
        "unknown_size": unknown_size(arms, name),
    }


def best_fixed(arms: Arms) -> str | None:
    """The fixed size with the lowest loss at 1.0 C on the first random seed: is depth worth having?"""
    first = arms.protocol.seeds[0]
    names = [name for name in arms.fixed() if (name, first) in arms.curves]
    if LARGEST not in names:
        return None
    return min(names, key=lambda name: arms.curves[name, first].at_share(1.0).loss)


def ends(arms: Arms, name: str) -> list[dict[str, Any]]:
    """The ends of an arm: means over its random seeds."""
    seeds = arms.seeds(name)
    curves = [arms.curves[name, seed] for seed in seeds]
    found = []
    for end in curves[0].ends:
        same = [curve.at_share(end.share) for curve in curves]
        loss = estimate([each.loss for each in same])
        error = None if loss.standard_error is None else round(loss.standard_error, 5)
        found.append({
            "share": end.share, "flops": round(estimate([each.flops for each in same]).mean),
            "seconds": round(estimate([each.seconds for each in same]).mean, 2), "loss": round(loss.mean, 5),
            "standard_error": error, "random_seeds": seeds,
        })  # fmt: skip
    return found


def table(whole: dict[str, Any]) -> str:
    """Markdown: for each workload the arms' ends, then the answers."""
    lines = [f"<!-- written by {whole['command']} --report -->", ""]
    for name, told in whole["workloads"].items():
        cost = next((e["flops"] for e in told["ends"].get(LARGEST, []) if e["share"] == 1.0), None)
        if cost is None:
            continue
        lines += [
            f"### {name}",
            "",
            "| arm | share of the large network's FLOPs: test loss | random seeds |",
            "|---|---|---|",
        ]
        for arm, found in told["ends"].items():
            losses = " · ".join(f"{e['flops'] / cost:.2f}: {_loss(e)}" for e in found)
            lines.append(f"| {arm} | {losses} | {len(found[0]['random_seeds'])} |")
        lines += ["", *_answers(told), ""]
    return "\n".join(lines)


def _loss(end: dict[str, Any]) -> str:
    error = "" if end["standard_error"] is None else f" ± {end['standard_error']:.4f}"
    return f"{end['loss']:.4f}{error}"


def _answers(told: dict[str, Any]) -> list[str]:
    lines = [
        "| growth | share of FLOPs | share of seconds | below the envelope, nats | over the sweep |",
        "|---|---|---|---|---|",
    ]
    for name, found in told["growth"].items():
        envelope, unknown = found["below_envelope"] or {}, found["unknown_size"] or {}
        cells = [
            _with_error(found["share_of_flops"], 3), _with_error(found["share_of_seconds"], 3),
            _with_error(envelope, 4), _number(unknown.get("over_the_sweep"), 3),
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _with_error(found: dict[str, Any], digits: int) -> str:
    if found.get("mean") is None:
        gap = (found.get("gap") or {}).get("mean")
        return "-" if gap is None else f"not reached by {gap:+.4f} ({found['reached']} random seeds)"
    error = found["standard_error"]
    return _number(found["mean"], digits) + ("" if error is None else f" ± {error:.{digits}f}")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
