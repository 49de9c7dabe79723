"""The fifth experiment: the rule of the fourth on another text, and in longer runs.

See PREREGISTERED_FIFTH.md.

A fixed size is here with both of its learning rates where it has two: the better one is what counts.
"""

from __future__ import annotations

from typing import Any

from benchmarks.worth import copied, peers
from benchmarks.worth.analysis import Arms, Curve, End
from benchmarks.worth.arms import GROW_COPIES, SOONER
from benchmarks.worth.protocols import LARGEST
from benchmarks.worth.questions import NEAR, percent, share_of_large, with_error
from benchmarks.worth.unknown import below_best, blocks, mean_end

END = copied.END
COSTS = ("flops", "seconds")


def answers(arms: Arms, extra: Arms | None = None) -> dict[str, Any] | None:
    """The three questions for `GROW_COPIES`, and every arm's losses; None before it has run.

    ``extra``: a fixed size with another learning rate, which was added afterwards; see `copied.answers`.
    """
    seeds = arms.seeds(GROW_COPIES)
    if not seeds or not arms.seeds(LARGEST):
        return None
    shares = {of: share_of_large(arms, GROW_COPIES, of) for of in COSTS}
    envelope = below_best(arms, GROW_COPIES, END, END) or {}
    unknown = unknown_size(arms)
    return {
        "primary_arm": GROW_COPIES,
        "random_seeds": seeds,
        **{f"share_of_{of}": shares[of]["mean"] for of in COSTS},
        **{f"share_of_{of}_standard_error": shares[of]["standard_error"] for of in COSTS},
        "share_of_flops_reached": shares["flops"]["reached"],
        "below_envelope": envelope.get("mean"),
        "standard_error": envelope.get("standard_error"),
        "best_fixed": envelope.get("best_fixed"),
        "cost_of_unknown_size": unknown["over_the_sweep"],
        "blocks": {
            name: [blocks(arms, name, seed) for seed in arms.seeds(name)]
            for name in (GROW_COPIES, SOONER)
            if arms.seeds(name)
        },
        "unknown_size": unknown,
        "sooner_minus_primary": peers.over(arms, SOONER, arms, GROW_COPIES),
        "arms": copied.answers(arms, extra),
    }


def unknown_size(arms: Arms) -> dict[str, Any]:
    """(c) What growth costs until it is near the best fixed size, over the sweep; and what guesses give."""
    found = {name: _mean(arms, name) for name in arms.fixed()}
    sizes = {name: end for name, end in found.items() if arms.arms[name].factor == 1}
    best = min(found, key=lambda name: found[name].loss)
    goal = NEAR * found[best].loss
    shares = [end.share for end in arms.curves[GROW_COPIES, arms.seeds(GROW_COPIES)[0]].ends]
    grown = Curve(tuple(_mean(arms, GROW_COPIES, share) for share in shares))
    cost = grown.cost_of(goal)
    rates = sum(map(arms.tuning_flops, sizes)), arms.tuning_flops(GROW_COPIES)
    sweep = sum(end.flops for end in sizes.values())
    guessed = {name: round(end.loss / found[best].loss - 1, 5) for name, end in sizes.items()}
    return {
        "best_fixed": best,
        "loss_to_reach": round(goal, 5),
        "growth_above_best_by": round(grown.ends[-1].loss / found[best].loss - 1, 5),
        "over_the_sweep": None if cost is None else round(cost / sweep, 4),
        "over_the_sweep_with_learning_rates": (
            None if cost is None else round((cost + rates[1]) / (sweep + rates[0]), 4)
        ),
        "guessing_misses_best_by": guessed,
        "guessing_at_random_misses_best_by": round(sum(guessed.values()) / len(guessed), 5),
    }


def _mean(arms: Arms, name: str, share: float = END) -> End:
    """An end of an arm: the mean over the random seeds that it has."""
    return mean_end([arms.curves[name, seed].at_share(share) for seed in arms.seeds(name)])


def table(found: dict[str, Any]) -> list[str]:
    """Markdown: the answers, then all arms, the lowest loss first."""
    unknown = found["unknown_size"]
    lines = ["| `grow-copies` | |", "|---|---|"]
    for of in COSTS:
        share = {"mean": found[f"share_of_{of}"], "standard_error": found[f"share_of_{of}_standard_error"]}
        text = "-" if share["mean"] is None else with_error(share)
        lines.append(f"| share of {of} of 8 blocks, to their loss | {text} |")
    if found["below_envelope"] is not None:
        below = {"mean": found["below_envelope"], "standard_error": found["standard_error"]}
        lines.append(f"| below the best fixed size, nats | {with_error(below)} ({found['best_fixed']}) |")
    over = unknown["over_the_sweep"]
    lines += [
        f"| unknown size, over the sweep | {'-' if over is None else f'{over:.3f}'} |",
        f"| above the best size | {percent(unknown['growth_above_best_by'])} |",
        f"| a guess at random above it | {percent(unknown['guessing_at_random_misses_best_by'])} |",
    ]
    for name, each in unknown["guessing_misses_best_by"].items():
        lines.append(f"| `{name}` above it | {percent(each)} |")
    for name, each in found["blocks"].items():
        lines.append(f"| blocks of `{name}` in the end | {', '.join(map(str, each))} |")
    if found["sooner_minus_primary"]:
        lines.append(
            f"| `{SOONER}` minus `{GROW_COPIES}`, nats | {with_error(found['sooner_minus_primary'])} |"
        )
    return [*lines, "", *copied.table(found["arms"])]
