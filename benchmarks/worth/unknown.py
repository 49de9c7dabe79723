"""The second experiment: what growth to a size that nobody knows is worth. See PREREGISTERED_SECOND.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.worth.analysis import Arms, Curve, End, Estimate, estimate
from benchmarks.worth.arms import ANYTHING, GROW, SEVERAL
from benchmarks.worth.protocols import LARGEST
from benchmarks.worth.questions import FULL, NEAR, told

COSTS = ("flops", "seconds")
CHEAP = 0.35  # C: of the cheap sweep
PEERS = {"deepen-1-2": 0.834, SEVERAL: 1.0, ANYTHING: 1.0}  # C: what those arms cost until their last ends


def answers(arms: Arms, first: Arms) -> dict[str, Any] | None:
    """The three questions for the primary arm. ``first``: the first experiment, which has the large sizes."""
    seeds = arms.seeds(GROW)
    if not seeds or not first.seeds(LARGEST):
        return None
    envelope = below_best(arms, GROW, FULL, FULL) or {}
    unknown = unknown_size(arms, first)
    shares = {of: share_of_large(arms, first, of) for of in COSTS}
    return {
        "primary_arm": GROW,
        "random_seeds": seeds,
        **{f"share_of_{of}": shares[of]["mean"] for of in COSTS},
        **{f"share_of_{of}_standard_error": shares[of]["standard_error"] for of in COSTS},
        "below_envelope": envelope.get("mean"),
        "standard_error": envelope.get("standard_error"),
        "cost_of_unknown_size": unknown["over_the_sweep"] if unknown else None,
        "blocks": {
            str(end.share): [blocks(arms, GROW, seed, end.share) for seed in seeds] for end in _ends(arms)
        },
        "below_envelope_at": {
            str(end.share): below_best(arms, GROW, end.share, end.share) for end in _ends(arms)
        },
        "unknown_size": unknown,
        "confirmatory": {
            peer: below_best(arms, peer, FULL, match) for peer, match in PEERS.items() if arms.seeds(peer)
        },
    }


def below_best(
    arms: Arms, arm: str, share: float, matched: float, others: Sequence[str] | None = None
) -> dict[str, Any] | None:
    """(b) How far an end of an arm lies below that of the best fixed size with the same budget.

    Paired by random seed, over those that both have; nothing is interpolated. ``matched``: the end of the
    fixed sizes. ``others``: arms in the place of these. ``flops_ratio``: what the arm spent over what that
    size did.
    """
    found: dict[str, tuple[Estimate, float]] = {}
    wanted = arms.seeds(arm)
    for name in arms.fixed() if others is None else others:
        seeds = arms.seeds(name, arm)
        if seeds != wanted:
            continue
        pairs = [(arms.curves[name, s].at_share(matched), arms.curves[arm, s].at_share(share)) for s in seeds]
        gains = estimate([fixed.loss - end.loss for fixed, end in pairs])
        found[name] = gains, statistics.fmean(end.flops / fixed.flops for fixed, end in pairs)
    if not found:
        return None
    best = min(found, key=lambda name: found[name][0].mean)
    return {"best_fixed": best, **told(found[best][0]), "flops_ratio": round(found[best][1], 4)}


def added_control(arms: Arms, extra: Arms) -> dict[str, Any] | None:
    """(b) and (c) against a fixed size with another learning rate, which was added after the results.

    ``above``: by what share of that size's loss growth ends above it; (c) asks for at most 0.01.
    """
    (name,) = extra.fixed() or (None,)
    seeds = [seed for seed in arms.seeds(GROW) if name and (name, seed) in extra.curves]
    if name is None or not seeds:
        return None
    found: dict[str, Any] = {"arm": name, "learning_rate": extra.protocol.scales[extra.workload].rates[0]}
    below, above = {}, {}
    for end in _ends(arms):
        pairs = [
            (extra.curves[name, s].at_share(end.share), arms.curves[GROW, s].at_share(end.share))
            for s in seeds
        ]
        below[str(end.share)] = told(estimate([fixed.loss - grown.loss for fixed, grown in pairs]))
        fixed_loss, grown_loss = (mean_end([pair[side] for pair in pairs]).loss for side in (0, 1))
        above[str(end.share)] = round(grown_loss / fixed_loss - 1, 4)
    return {**found, "random_seeds": seeds, "below_it_at": below, "above": above}


def share_of_large(arms: Arms, first: Arms, of: str) -> dict[str, Any]:
    """(a) The share of the large network's mean cost at which growth reaches that one's mean loss.

    Its first end may be there already: then its cost is given, which is an upper bound.
    """
    large = mean_end([first.curves[LARGEST, seed].at_share(FULL) for seed in first.seeds(LARGEST)])
    costs = [arms.curves[GROW, seed].cost_of(large.loss, of) for seed in arms.seeds(GROW)]
    reached = [cost / getattr(large, of) for cost in costs if cost is not None]
    if len(reached) < len(costs):
        return {"mean": None, "standard_error": None}
    return told(estimate(reached))


def unknown_size(arms: Arms, first: Arms) -> dict[str, Any] | None:
    """(c) What growth costs until it is near the best fixed size, over the sweep; and other ways."""
    seeds = arms.seeds(GROW)
    sizes = [name for name in arms.fixed() if set(seeds) <= set(arms.seeds(name))]
    full = all_sizes(arms, first, sizes)
    if not sizes or full.keys() != set(first.fixed()):
        return None
    best = min(full, key=lambda name: full[name].loss)
    goal = NEAR * full[best].loss
    ends = [mean_end([arms.curves[GROW, s].at_share(end.share) for s in seeds]) for end in _ends(arms)]
    cost = Curve(tuple(ends)).cost_of(goal)
    sweep = sum(end.flops for end in full.values())
    grown = {seed: arms.curves[GROW, seed].at_share(FULL).loss for seed in seeds}
    early = {name: _early(arms, first, name, sizes) for name in full}
    chosen = {s: min(full, key=lambda name: early[name].get(s, early[name][None]).validation) for s in seeds}
    cheap = sum(found[None].flops for found in early.values())
    cheap += statistics.fmean(full[name].flops for name in chosen.values())

    def minus_grown(losses: dict[int, float]) -> dict[str, Any]:
        return told(estimate([losses[seed] - grown[seed] for seed in seeds]))

    def at_full(name: str) -> dict[int, float]:
        if name not in sizes:
            return dict.fromkeys(seeds, full[name].loss)
        return {seed: arms.curves[name, seed].at_share(FULL).loss for seed in seeds}

    blind = statistics.fmean(end.loss for end in full.values())
    return {
        "best_fixed": best,
        "loss_to_reach": round(goal, 5),
        "loss_at_full_budget": told(estimate(list(grown.values()))),
        "over_the_sweep": None if cost is None else round(cost / sweep, 4),
        "over_the_cheap_sweep": None if cost is None else round(cost / cheap, 4),
        "over_one_guess": None if cost is None else round(cost / full[best].flops, 4),
        "guess_blindly_minus_growth": minus_grown(dict.fromkeys(seeds, blind)),
        "cheap_sweep_minus_growth": minus_grown({s: at_full(name)[s] for s, name in chosen.items()}),
        "cheap_sweep_chose": sorted(set(chosen.values())),
        **{f"{name}_minus_growth": minus_grown(at_full(name)) for name in full},
        "sizes_of_the_first_experiment": [name for name in full if name not in sizes],
    }


def all_sizes(arms: Arms, first: Arms, sizes: list[str]) -> dict[str, End]:
    """All fixed sizes at full cost: means; those that are not among ``sizes`` are of the first experiment."""
    found = {}
    for name in first.fixed():
        source = arms if name in sizes else first
        found[name] = mean_end([source.curves[name, seed].at_share(FULL) for seed in source.seeds(name)])
    return found


def mean_end(ends: list[End]) -> End:
    """The mean of ends of several random seeds."""
    names = ("flops", "seconds", "loss", "validation", "training_flops")
    return End(ends[0].share, *(statistics.fmean(getattr(end, name) for end in ends) for name in names))


def _ends(arms: Arms) -> tuple[End, ...]:
    return arms.curves[GROW, arms.seeds(GROW)[0]].ends


def _early(arms: Arms, first: Arms, name: str, sizes: list[str]) -> dict[int | None, End]:
    """The early end of a size by random seed, and under None their mean."""
    if name in sizes:
        ends: dict[int | None, End] = {s: arms.curves[name, s].at_share(CHEAP) for s in arms.seeds(name)}
        return ends | {None: mean_end(list(ends.values()))}
    share = 0.3  # the nearest that there is
    return {None: mean_end([first.curves[name, s].at_share(share) for s in first.seeds(name)])}


def blocks(arms: Arms, arm: str, seed: int, share: float = FULL) -> int | None:
    """How many blocks a run of an arm had at an end."""
    wanted = (arms.workload, arm, seed)
    for record in arms.records.values():
        if tuple(record["run"][key] for key in ("workload", "arm", "seed")) == wanted:
            return next(end.get("blocks") for end in record["ends"] if end["share"] == share)
    return None
