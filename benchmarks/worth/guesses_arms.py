"""The arms of the sixth experiment: what a wrong guess of the size costs, and a first block without a trial.

See PREREGISTERED_SIXTH.md. Learning rates are given: they were chosen in earlier experiments.
"""

from __future__ import annotations

from benchmarks.worth.arm import Arm

EARLY = "grow-early"
"""The primary arm: a second block comes as a copy, without a trial, the others while they pay."""
TIMES = {2: ((0.2, 2),), 4: ((0.05, 2), (0.15, 4)), 8: ((0.05, 2), (0.15, 4), (0.3, 8))}
"""At which shares of the budget growth comes to a size that was guessed."""
FIXED_RATES = {
    "gpt": {2: (0.003, 0.0021), 4: (0.0015, 0.0021), 8: (0.0015, 0.003)},
    "brown": {2: (0.003, 0.0021), 4: (0.0021, 0.0015), 8: (0.003, 0.0021)},
    "cnn": {2: (0.016, 0.0113), 4: (0.004, 0.008), 8: (0.004, 0.008)},
    "thin": {2: (0.064, 0.032), 3: (0.064, 0.032), 4: (0.032, 0.016), 8: (0.008, 0.016)},
    "long": {3: (0.006,), 4: (0.006,)},
}
"""Of each size from scratch: two, or the better one of those that were compared before."""
GROWN_RATES = {"gpt": 0.0021, "brown": 0.003, "cnn": 0.016, "thin": 0.064, "long": 0.012}
"""Of all that grows: the one that growth to the best size, or in long runs to 4 blocks, had chosen."""
OTHER = "-other"
"""Behind the name of a fixed size with its second learning rate."""


def _sizes(task: str) -> list[Arm]:
    return [
        Arm(
            f"fixed-{depth}{OTHER * number}", depth, "fixed", f"fixed-{depth}", (1.0,), seeds="all",
            protocols=("guesses",), workloads=(task,), inside=True, rate=rate,
        )
        for depth, rates in FIXED_RATES[task].items()
        for number, rate in enumerate(rates)
    ]  # fmt: skip


def _guess(task: str, depth: int) -> Arm:
    """1 block that is doubled to so many by copies, as the learning rate falls."""
    options = {"init": "copy", "optimizer_state": "copy", "at": None, "factor": 0.5**0.5}
    return Arm(
        f"copies-{depth}", 1, "shares", f"copies-{depth}", (1.0,), TIMES[depth], options, seeds="all",
        protocols=("guesses",), workloads=(task,), rate=GROWN_RATES[task],
    )  # fmt: skip


def _early(task: str) -> Arm:
    options = {
        "first": 0.2, "last": 0.5, "hold": 0.1, "init": "copy", "statistics": "batch", "lower": 0.5,
        "price": 0.25,
    }  # fmt: skip
    return Arm(
        EARLY,
        1,
        "grow early",
        EARLY,
        (1.0,),
        ((0.1, 2),),
        options,
        seeds="all",
        protocols=("guesses",),
        workloads=(task,),
        rate=GROWN_RATES[task],
    )


GUESSES = tuple(
    arm
    for task in FIXED_RATES
    for arm in (
        *_sizes(task),
        _early(task),
        *(_guess(task, depth) for depth in ((4,) if task == "long" else TIMES)),
    )
)
