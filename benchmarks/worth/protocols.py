"""How long runs are, how many there are and which learning rates are tried.

Fixed in PREREGISTERED.md; that of "unknown", the second experiment, in PREREGISTERED_SECOND.md; the workload
"thin" of both in PREREGISTERED_THIRD.md. "unknown_extra" is a control that was added after the results of
"unknown"; "tried" is what may make growth better, and "tried_again" what of it did: ADDED_AFTERWARDS.md.
"copies" is the fourth experiment: PREREGISTERED_FOURTH.md; "copies_extra" has controls that were added to it.
"adapters" and "widths" are peers from other libraries: ADDED_AFTERWARDS.md.
"brown" and "long" are the fifth, on a text that no rule was made on and in runs nine times as long:
PREREGISTERED_FIFTH.md; "long_extra" is a control that was added to it.
"guesses" is the sixth, on guesses of the size: PREREGISTERED_SIXTH.md; "measured" the seventh, in which
blocks are measured several times before they stay: PREREGISTERED_SEVENTH.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LARGE = 8  # blocks of the large network
LARGEST = f"fixed-{LARGE}"
"""The arm that trains it from scratch."""


@dataclass(frozen=True)
class Scale:
    """One workload in one protocol.

    Attributes:
        steps: N, of the large network.
        batch: pieces or images of one step.
        context: characters of a piece; gpt alone.
        depths: the fixed sizes.
        fixed_ends: where fixed sizes end, in multiples of the large network's N steps in FLOPs; 0.834 is
            what "deepen-1-2" costs.
        rates: learning rates that are tried.
        validation: pieces or images that one evaluation for the curve takes.
        test: likewise, at the end of a run.
        points: of a curve.
        tuning: the length of the runs that choose a learning rate, in multiples of N.
    """

    steps: int
    batch: int
    context: int
    depths: tuple[int, ...]
    fixed_ends: tuple[float, ...]
    rates: tuple[float, ...]
    validation: int
    test: int
    points: int = 16
    tuning: float = 0.2


@dataclass(frozen=True)
class Protocol:
    """A size of the whole experiment.

    Attributes:
        scales: by workload.
        seeds: random seeds of finalists; the first is that of all others.
        variants: whether arms are run that have one random seed: "none", "some" (after all others), "all".
        by_budget: whether the ends of fixed sizes include their evaluations, as those of `grow` do.
        rates_of: another protocol, whose tuning runs count here as well.
        tuned: whether learning rates are chosen by runs of their own; else the one of a scale is taken.
        tuning_seed: the random seed of these runs, which is used for nothing else.
        beyond: how many further learning rates are tried where the best is at the edge.
        finalists: how many fixed sizes get all random seeds, each with a lower rate as well; None: all sizes
            do, and there is no lower rate.
    """

    name: str
    scales: dict[str, Scale]
    seeds: tuple[int, ...]
    variants: str
    by_budget: bool = False
    rates_of: str | None = None
    tuned: bool = True
    tuning_seed: int = 100
    beyond: int = 1
    finalists: int | None = None


GPT_RATES, CNN_RATES, THIN_RATES = (0.0015, 0.003, 0.006), (0.002, 0.004, 0.008), (0.008, 0.016, 0.032)
SIX, FOUR = (1, 2, 3, 4, 6, 8), (1, 2, 4, 8)
TWO_ENDS, THREE_ENDS, FIVE_ENDS = (0.3, 1.0), (0.3, 0.6, 1.0), (0.15, 0.3, 0.6, 1.0, 1.5)
GPT = Scale(1500, 8, 64, SIX, THREE_ENDS, GPT_RATES, validation=256, test=1024, points=10)
CNN = Scale(800, 32, 0, FOUR, THREE_ENDS, CNN_RATES, validation=1000, test=10_000, points=10)
"""Each of them in all short runs; protocols differ in the sizes, ends and learning rates."""
LONG = Scale(3000, 16, 128, SIX, TWO_ENDS, GPT_RATES, validation=256, test=2048)

GIVEN_RATES = {
    name: replace(scale, depths=(), fixed_ends=(), tuning=1.0)
    for name, scale in (("gpt", GPT), ("brown", GPT), ("cnn", CNN), ("thin", CNN), ("long", LONG))
}
"""All five tasks, where each arm is given its learning rate and its size."""

PROTOCOLS = {
    "short": Protocol(
        "short",
        {
            "gpt": GPT,
            "cnn": CNN,
            "thin": replace(CNN, rates=THIN_RATES),
        },
        seeds=(0, 1, 2),
        variants="some",
    ),
    "full": Protocol(
        "full",
        {
            "gpt": Scale(12_000, 16, 128, SIX, FIVE_ENDS, GPT_RATES, validation=512, test=4096, points=40),
            "cnn": Scale(6000, 64, 0, SIX, FIVE_ENDS, CNN_RATES, validation=5000, test=10_000, points=40),
        },
        seeds=(0, 1, 2),
        variants="all",
    ),
    "unknown": Protocol(
        "unknown",
        {
            "gpt": replace(GPT, depths=(1, 2, 3), fixed_ends=(0.35, 0.834, 1.0)),
            "cnn": replace(CNN, depths=(1, 2, 4), fixed_ends=(0.35, 1.0)),
            "thin": replace(CNN, fixed_ends=(0.35, 1.0), rates=THIN_RATES),
        },
        seeds=(3, 4, 5),
        variants="none",
        by_budget=True,
        rates_of="short",
        beyond=5,
    ),
    "unknown_extra": Protocol(
        "unknown_extra",
        {"cnn": replace(CNN, depths=(2,), fixed_ends=(0.35, 1.0), rates=(0.016,))},
        seeds=(3, 4, 5),
        variants="none",
        by_budget=True,
        tuned=False,
    ),
    "tried": Protocol(
        "tried",
        {"gpt": replace(GPT, depths=(), fixed_ends=(), rates=(0.003,))},
        seeds=(6, 7, 8),
        variants="all",
        tuned=False,
    ),
    "tried_again": Protocol(
        "tried_again",
        {
            "gpt": replace(GPT, depths=(1, 2, 3), fixed_ends=(0.834,)),
        },
        seeds=(9, 10, 11),
        variants="none",
        by_budget=True,
        rates_of="short",
        beyond=5,
    ),
    "tried_control": Protocol(
        "tried_control",
        {"gpt": replace(GPT, depths=(2,), fixed_ends=(0.834,), rates=(0.0021,))},
        seeds=(9, 10, 11),
        variants="none",
        by_budget=True,
        tuned=False,
    ),
    "copies": Protocol(
        "copies",
        {
            "gpt": replace(
                GPT, depths=(1, 2, 3), fixed_ends=(1.0,), rates=(0.0015, 0.0021, 0.003), tuning=1.0
            ),
            "cnn": replace(
                CNN, depths=(1, 2, 4), fixed_ends=(1.0,), rates=(0.008, 0.0113, 0.016), tuning=1.0
            ),
            "thin": replace(
                CNN, depths=(2, 3, 4), fixed_ends=(1.0,), rates=(0.016, 0.032, 0.064), tuning=1.0
            ),
        },
        seeds=(12, 13, 14),
        variants="none",
        by_budget=True,
        tuning_seed=101,
    ),
    "copies_extra": Protocol(
        "copies_extra",
        {
            "gpt": replace(GPT, depths=(2,), fixed_ends=(1.0,), rates=(0.0021,)),
            "cnn": replace(CNN, depths=(2,), fixed_ends=(1.0,), rates=(0.0113,)),
            "thin": replace(CNN, depths=(3,), fixed_ends=(1.0,), rates=(0.032,)),
        },
        seeds=(12, 13, 14),
        variants="none",
        by_budget=True,
        tuned=False,
    ),
    "adapters": Protocol(
        "adapters",
        {"gpt": replace(GPT, depths=(), fixed_ends=(), rates=(0.0015, 0.003, 0.006), tuning=1.0)},
        seeds=(12, 13, 14),
        variants="none",
        by_budget=True,
        tuning_seed=101,
    ),
    "widths": Protocol(
        "widths",
        {
            "mlp": replace(
                CNN,
                steps=4000,
                batch=64,
                depths=(1, 2, 4, 8, 16),
                fixed_ends=(1.0,),
                rates=(0.001, 0.002, 0.004),
                tuning=1.0,
            )
        },
        seeds=(21, 22, 23),
        variants="none",
        by_budget=True,
        tuning_seed=101,
        beyond=2,
    ),
    "brown": Protocol(
        "brown",
        {"brown": replace(GPT, fixed_ends=TWO_ENDS, rates=(0.0015, 0.0021, 0.003), tuning=1.0)},
        seeds=(15, 16, 17),
        variants="none",
        by_budget=True,
        tuning_seed=102,
        finalists=3,
    ),
    "long": Protocol(
        "long",
        {"long": LONG},
        seeds=(18, 19, 20),
        variants="none",
        by_budget=True,
        tuning_seed=103,
        finalists=2,
    ),
    "long_extra": Protocol(
        "long_extra",
        {"long": replace(LONG, depths=(4,), rates=(0.006,))},
        seeds=(18, 19, 20),
        variants="none",
        by_budget=True,
        tuned=False,
    ),
    "guesses": Protocol(
        "guesses",
        GIVEN_RATES,
        seeds=(24, 25, 26),
        variants="none",
        by_budget=True,
        tuned=False,
    ),
    "measured": Protocol(
        "measured",
        GIVEN_RATES,
        seeds=(27, 28, 29),
        variants="none",
        by_budget=True,
        tuned=False,
    ),
    "quick": Protocol(
        "quick",
        {
            "gpt": Scale(40, 8, 64, (1, 4, 8), THREE_ENDS, GPT_RATES[1:2], validation=16, test=32, points=4),
            "cnn": Scale(30, 16, 0, (1, 4, 8), THREE_ENDS, CNN_RATES[1:2], validation=64, test=128, points=4),
            "thin": Scale(
                30, 16, 0, (1, 4, 8), THREE_ENDS, THIN_RATES[1:2], validation=64, test=128, points=4
            ),
        },
        seeds=(0, 1),
        variants="some",
    ),
}
