"""``worth.json``: what the records of one protocol say, as answers; its tables are of `worth.table`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.worth import (
    copied,
    elsewhere,
    guesses,
    measured,
    peers,
    plot,
    plot_copied,
    results,
    tried,
    unknown,
)
from benchmarks.worth.analysis import Arms, estimate
from benchmarks.worth.arms import PRIMARY
from benchmarks.worth.experiments import COPIED, ELSEWHERE, EXTRA, GUESSED, LATER, MEASURED, TRIED
from benchmarks.worth.plan import plan_of
from benchmarks.worth.protocols import LARGEST, PROTOCOLS, Protocol
from benchmarks.worth.questions import (
    below_envelope,
    best_smaller_share,
    share_of_large,
    unknown_size,
)
from benchmarks.worth.table import arms_of, table

FILE, TABLE = "worth.json", "worth.md"


class Experiments(NamedTuple):
    """The arms of one workload: of the first experiment, the second, and the control that came after it."""

    first: Arms
    second: Arms | None = None
    extra: Arms | None = None


def write(protocol: Protocol, out: Path, pictures: Path) -> None:
    """Write summary, table and plots of what is in ``out``; workloads of which nothing has run are left out.

    The experiments of the short protocol have one summary.
    """
    protocol = owner(protocol)
    found = experiments(protocol, out)
    records = [record for each in found.values() for arms in each if arms for record in arms.records.values()]
    for name in LATER if protocol.name == "short" else ():
        records += results.read(results.folder(PROTOCOLS[name], out)).values()
    environments = {json.dumps(record["environment"], sort_keys=True) for record in records}
    whole = {
        "protocol": protocol.name,
        "command": f"python -m benchmarks.worth --protocol {protocol.name}",
        "environments": [json.loads(each) for each in sorted(environments)],
        "workloads": {name: answers(each) for name, each in found.items()}
        | (other_tasks(out) if protocol.name == "short" else {}),
        **(
            what_was_tried(out)
            | copies(out)
            | other_libraries(out)
            | guessed(out)
            | measured_several_times(out)
            if protocol.name == "short"
            else {}
        ),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (out / TABLE).write_text(table(whole), encoding="utf-8")
    plot.draw(found, pictures)
    if protocol.name == "short":
        for name in ELSEWHERE:
            if (arms := _arms(name, name, out)) is not None:
                plot.draw_front(name, arms, None, pictures, _extra(name, out))
    if told := whole.get(COPIED):
        plot_copied.draw({name: arms_of(of) for name, of in told.items()}, pictures)
    print((out / TABLE).read_text(encoding="utf-8"))


def owner(protocol: Protocol) -> Protocol:
    """The protocol in whose summary another one's results are."""
    return PROTOCOLS["short"] if protocol.name in results.KEPT else protocol


def experiments(protocol: Protocol, out: Path) -> dict[str, Experiments]:
    """By workload the arms of the first experiment, and of the others where they belong to this protocol."""
    found: dict[str, Experiments] = {}
    for name in protocol.scales:
        arms = Arms(protocol, name, results.of(protocol, out))
        if arms.curves:
            others = [_arms(other, name, out) for other in ("unknown", "unknown_extra")]
            found[name] = Experiments(arms, *(others if protocol.name == "short" else ()))
    return found


def _arms(protocol: str, workload: str, out: Path) -> Arms | None:
    """Those of a workload; None where it has no results, or is not in the protocol."""
    records = results.of(PROTOCOLS[protocol], out)
    if workload not in PROTOCOLS[protocol].scales or not records:
        return None
    return Arms(PROTOCOLS[protocol], workload, records)


def answers(of: Experiments) -> dict[str, Any]:
    """The answers of the second experiment, and those of the first as "first"; else of the first alone."""
    first = workload(of.first) | {"missing_runs": missing(of.first)}
    told = unknown.answers(of.second, of.first) if of.second is not None else None
    if of.second is None or told is None:
        return first
    names = list(dict.fromkeys(name for name, _ in of.second.curves))
    control = unknown.added_control(of.second, of.extra) if of.extra is not None else None
    return {
        **told,
        **({"added_control": control} if control else {}),
        "ends": {name: ends(of.second, name) for name in names},
        "missing_runs": missing(of.second),
        "first": first,
    }


def what_was_tried(out: Path) -> dict[str, Any]:
    """What may make growth better, and what of it helped once more; empty where nothing of it has run."""
    found = {name: _arms(name, "gpt", out) for name in TRIED}
    control = {"tried_again": _arms("tried_control", "gpt", out)}
    return {
        name: tried.answers(arms, control.get(name)) if arms is not None else {}
        for name, arms in found.items()
    }


def copies(out: Path) -> dict[str, Any]:
    """The answers of the fourth experiment by workload; empty where nothing of it has run."""
    found = {name: _arms(COPIED, name, out) for name in PROTOCOLS[COPIED].scales}
    told = {
        name: copied.answers(arms, _arms("copies_extra", name, out)) | {"missing_runs": missing(arms)}
        for name, arms in found.items()
        if arms is not None and arms.curves
    }
    return {COPIED: told} if told else {}


def other_libraries(out: Path) -> dict[str, Any]:
    """What the peers from other libraries give; empty where nothing of it has run."""
    adapters, widths = _arms("adapters", "gpt", out), _arms("widths", "mlp", out)
    return {
        **({"adapters": peers.adapters(adapters, _arms(COPIED, "gpt", out))} if adapters else {}),
        **({"widths": peers.widths(widths)} if widths else {}),
    }


def guessed(out: Path) -> dict[str, Any]:
    """The answers of the sixth experiment by workload; empty where nothing of it has run."""
    told = _answered(GUESSED, guesses.answers, out)
    return {GUESSED: told, f"{GUESSED}_over_all": guesses.cheaper(told)} if told else {}


def measured_several_times(out: Path) -> dict[str, Any]:
    """The answers of the seventh experiment by workload; empty where nothing of it has run."""
    told = _answered(MEASURED, measured.answers, out)
    return {MEASURED: told, f"{MEASURED}_over_all": measured.over_all(told)} if told else {}


def _answered(
    protocol: str, answers_of: Callable[[Arms], dict[str, Any] | None], out: Path
) -> dict[str, dict[str, Any]]:
    """What is told of each workload of a protocol of which enough has run, and the runs that are missing."""
    found = {name: _arms(protocol, name, out) for name in PROTOCOLS[protocol].scales}
    return {
        name: answer | {"missing_runs": missing(arms)}
        for name, arms in found.items()
        if arms is not None and (answer := answers_of(arms)) is not None
    }


def other_tasks(out: Path) -> dict[str, Any]:
    """The answers of the fifth experiment by workload; empty where nothing of it has run."""
    found = {name: _arms(name, name, out) for name in ELSEWHERE}
    told = {
        name: (arms, elsewhere.answers(arms, _extra(name, out)))
        for name, arms in found.items()
        if arms is not None
    }
    return {
        name: {**answer, "missing_runs": missing(arms), "ends": {n: ends(arms, n) for n in _names(arms)}}
        for name, (arms, answer) in told.items()
        if answer is not None
    }


def _extra(name: str, out: Path) -> Arms | None:
    """The control that was added to a task of the fifth experiment."""
    return _arms(EXTRA[name], name, out) if name in EXTRA else None


def _names(arms: Arms) -> list[str]:
    """The arms that have run."""
    return [name for name in arms.arms if arms.seeds(name)]


def missing(arms: Arms) -> list[str]:
    """Names of the runs that have not been made."""
    return [run.name for run in plan_of(arms.protocol, arms.workload, arms.records).missing()]


def workload(arms: Arms) -> dict[str, Any]:
    """The answers of the first experiment for one workload."""
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
