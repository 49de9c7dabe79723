"""The results of `benchmarks.explore` as a page."""

from __future__ import annotations

from typing import Any

from benchmarks.environment import as_markdown
from benchmarks.explore.plan import REPEATS
from benchmarks.explore.rule import decisive, means, winner

GOALS = (("spearman", 0.6, "at least"), ("regret", 0.25, "at most"), ("cost", 0.1, "at most"))
TRIED = """\
Also tried, after the plan and by code that is not kept here, on 8 random seeds: each candidate
grown alone with alpha 1 from the start for 100 steps, a fifth of the rest of a run, its training
loss summed over the second half and compared with a run of the same batches without it. Spearman's
rho is 0.61 (MLP) and 0.48 (CNN), the regret 0.62 and 0.42. So it is mostly the noise of one run
that limits a score, not the score: the same numbers averaged over the 8 runs have a rho of 0.78 and
0.71. The default costs a sixth of that.

Before the product was chosen, on the random seeds in `CHOSEN_ON` and by code that is not kept,
these were compared too: powers and mixes of `adam`, its sign, `fisher`, the gradient's norm and the
size; the same with the noise of the gradients taken out; what an empirical kernel of the gradients
of single samples says that the host's own parameters cannot do (the idea of TINY), with and without
Adam's scales; the loss that all candidates take together when they are live in one copy of the host
for 100 steps, and the loss without each of them; the loss that each takes when it is live alone for
25, 50 or 100 steps. Live alone the best candidate of the MLP is found more often (regret 0.55), but
that is a run for each; six finalists of the product that are then tried live have the regrets 0.45,
0.45 and 0.00. Products of any of these statistics with a power of the size from 0.75 to 2 differ by
less than random seeds do: this one is the simplest, not the best of them (the gradient's norm times
the size to 1.5 has 0.63, 0.78, 0.77 and the regrets 0.98, 0.00, 0.00). Not tried: larger networks."""


def _shortfall(data: dict[str, Any]) -> str:
    """What the default reaches of the goals, beside what one run can tell."""
    rows = [
        "| workload | Spearman's rho | regret | cost | short of its goal | one run's own rho | regret |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in data["workloads"].items():
        if "spearman" not in found:
            continue
        short = [
            f"{key} by {abs(found[key] - goal):.2f}"
            for key, goal, kind in GOALS
            if (found[key] < goal if kind == "at least" else found[key] > goal)
        ]
        numbers = " | ".join(format(found[key], ".3f") for key, _, _ in GOALS)
        run = found["one run"]
        rows.append(
            f"| {name} | {numbers} | {', '.join(short) or 'nothing'} "
            f"| {run['spearman']:.2f} | {run['regret']:.2f} |"
        )
    goals = ", ".join(f"{key} {kind} {goal:g}" for key, goal, kind in GOALS)
    return (
        f"Goals: {goals}. *One run's own*: each candidate grown alone to the end with one random seed, as a "
        "score for the mean over the others. It costs all separate runs, and is what one run can tell.\n\n"
        + "\n".join(rows)
    )


def _by_rule(data: dict[str, Any]) -> str:
    """The means of the scores, all workloads alike, and which one the plan's rule picks."""
    workloads = data["workloads"]
    repeating = decisive(workloads)
    everywhere, there = means(workloads), {mean.score: mean for mean in means(workloads, repeating)}
    rows = [
        f"| score | mean rho | mean regret | {' and '.join(repeating)}: mean rho | mean regret |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| {mean.score} | {mean.spearman:.3f} | {mean.regret:.3f} "
        f"| {there[mean.score].spearman:.3f} | {there[mean.score].regret:.3f} |"
        for mean in everywhere
    ]
    return (
        "## The rule of the plan\n\n"
        "Of the scores that need no run of their own and were measured on all workloads; on the right those "
        f"workloads alone whose truth repeats (at least {REPEATS}). The rule picks "
        f"*{winner(everywhere).score}* on all of them, and *{winner(list(there.values())).score}* where the "
        f"truth repeats. The default, *{data['default']}*, deviates from that: it has the lowest regret, "
        "which is what whoever grows the first candidate loses.\n\n" + "\n".join(rows)
    )


def page(data: dict[str, Any]) -> str:
    blocks = [
        "# Which score tells where to grow",
        f"`{data['command']}`; what was decided before it ran is in `benchmarks/explore/plan.py`. "
        f"{as_markdown(data['environment'])}.",
        f"The default score of `manager.explore` is that of the row *{data['default']}*.",
    ]
    blocks += [_shortfall(data), _by_rule(data), TRIED]
    if data["steps"]:
        arms = list(data["steps"][0]["ratio"])
        rows = [f"| d_model | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
        for found in data["steps"]:
            ratios = " | ".join(format(found["ratio"][arm], ".2f") for arm in arms)
            rows.append(f"| {found['d_model']} | {ratios} |")
        blocks.append(
            "## A step\n\nCPU time of a training step of a GPT of four blocks with candidates beside it, "
            "against that of the bare host (medians of 15, in turns).\n\n" + "\n".join(rows)
        )
    for name, results in data["workloads"].items():
        repeats = results["repeats"]
        said = "not known" if repeats is None else f"{repeats:.2f}"
        enough = repeats is not None and repeats >= REPEATS
        truth = "" if enough else f": below {REPEATS}, so nothing is decided here"
        blocks.append(
            f"## {name}\n\n{len(results['candidates'])} candidates, {results['random_seeds']} random seeds. "
            f"The truth of one half of them agrees with that of the other by {said}{truth}. A random choice "
            f"has a regret of {results['regret of a random choice']:.2f}."
            + (f" {as_markdown(measured)}." if (measured := results.get("environment")) else "")
        )
        head = "| score | Spearman's rho | rho with the gains of the run itself | regret | cost | seeds |"
        rows = [head, "|---|---|---|---|---|---|"]
        for row in results["scores"]:
            cost = "" if row["cost"] is None else f"{row['cost']:.3f}"
            rows.append(
                f"| {row['score']} | {row['spearman']:.2f} | {row['spearman with the run itself']:.2f} "
                f"| {row['regret']:.2f} | {cost} | {row['random seeds']} |"
            )
        gains = ["| candidate | gain in held-out loss |", "|---|---|"]
        for c in sorted(results["candidates"], key=lambda c: -c["gain"]):
            where = f"{c['source']} -> {c['slot']}" if c["source"] else c["slot"]
            options = ", ".join(f"{key}={value}" for key, value in c["config"].items())
            gains.append(f"| {c['blueprint']}({options}) at {where} | {c['gain']:.4f} |")
        blocks += ["\n".join(rows), "\n".join(gains)]
    return "\n\n".join(blocks) + "\n"
