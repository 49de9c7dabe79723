"""The tables of ``worth.json``, as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.worth import copied, elsewhere, guesses, measured, peers, tried
from benchmarks.worth.experiments import COPIED, ELSEWHERE, GUESSED, MEASURED, PEERS, TRIED
from benchmarks.worth.protocols import LARGEST


def table(whole: dict[str, Any]) -> str:
    """Markdown: for each workload the arms' ends, then the answers."""
    lines = [f"<!-- written by {whole['command']} --report -->", ""]
    for name, told in whole["workloads"].items():
        if name in ELSEWHERE:
            continue
        first = told.get("first", told)
        cost = next((e["flops"] for e in first["ends"].get(LARGEST, []) if e["share"] == 1.0), None)
        if cost is None:
            continue
        if first is not told:
            lines += [
                f"### {name}, second experiment",
                "",
                *_ends(told["ends"], cost),
                "",
                *_second(told),
                "",
            ]
        lines += [f"### {name}, first experiment", "", *_ends(first["ends"], cost), "", *_answers(first), ""]
    for name, title in TRIED.items():
        if whole.get(name):
            lines += [f"### gpt, {title}", "", *tried.table(whole[name]), ""]
    for name, told in whole.get(COPIED, {}).items():
        lines += [f"### {name}, fourth experiment", "", *copied.table(arms_of(told)), ""]
    for name, title in PEERS.items():
        if whole.get(name):
            lines += [f"### {title}", "", *peers.table(whole[name]), ""]
    for name in ELSEWHERE:
        if told := whole["workloads"].get(name):
            lines += [f"### {name}, fifth experiment", "", *elsewhere.table(told), ""]
    for name, told in whole.get(GUESSED, {}).items():
        lines += [f"### {name}, sixth experiment", "", *guesses.table(told), ""]
    for name, told in whole.get(MEASURED, {}).items():
        lines += [f"### {name}, seventh experiment", "", *measured.table(told), ""]
    return "\n".join(lines)


def arms_of(told: dict[str, Any]) -> dict[str, Any]:
    """What the fourth experiment says of the arms of one workload."""
    return {arm: of for arm, of in told.items() if arm != "missing_runs"}


def _ends(found: dict[str, Any], cost: float) -> list[str]:
    lines = ["| arm | share of the large network's FLOPs: test loss | random seeds |", "|---|---|---|"]
    for arm, ends_of in found.items():
        losses = " · ".join(f"{e['flops'] / cost:.2f}: {_loss(e)}" for e in ends_of)
        lines.append(f"| {arm} | {losses} | {len(ends_of[0]['random_seeds'])} |")
    return lines


def _second(told: dict[str, Any]) -> list[str]:
    """The answers of the second experiment, and its controls."""
    unknown_size = told["unknown_size"] or {}
    lines = ["| `grow` | |", "|---|---|"]
    for of in ("flops", "seconds"):
        share = {"mean": told[f"share_of_{of}"], "standard_error": told[f"share_of_{of}_standard_error"]}
        lines.append(f"| share of {of} | {_with_error(share, 3)} |")
    for share, found in told["below_envelope_at"].items():
        versus = f" ({found['best_fixed']})" if found else ""
        lines.append(f"| below the envelope at {share} C, nats | {_with_error(found or {}, 4)}{versus} |")
    for arm, found in told["confirmatory"].items():
        lines.append(f"| `{arm}` below the envelope | {_with_error(found or {}, 4)} |")
    lines.append(f"| unknown size, over the sweep | {_number(told['cost_of_unknown_size'], 3)} |")
    for key, found in unknown_size.items():
        if key.endswith("_minus_growth"):
            what = key.removesuffix("_minus_growth").replace("_", " ")
            lines.append(f"| {what}, minus `grow` | {_with_error(found, 4)} |")
    control = told.get("added_control")
    if control:
        what = f"below `{control['arm']}` with learning rate {control['learning_rate']}, added afterwards"
        for share, found in control["below_it_at"].items():
            above = f"; {100 * control['above'][share]:.1f} % above it"
            lines.append(f"| {what}, at {share} C, nats | {_with_error(found, 4)}{above} |")
    blocks = "; ".join(f"{share} C: {', '.join(map(str, each))}" for share, each in told["blocks"].items())
    return [*lines, f"| blocks in the end | {blocks} |"]


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
