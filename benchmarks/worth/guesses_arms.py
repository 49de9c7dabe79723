"""The arms of the sixth experiment: what a wrong guess of the size costs, and a first block without a trial.

See PREREGISTERED_SIXTH.md. Learning rates are given: they were chosen in earlier experiments.
"""

from __future__ import annotations

from collections.abc import Collection

from benchmarks.worth.arm import TRIED_AS_COPIES, Arm

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


def sizes(task: str, protocol: str, depths: Collection[int]) -> list[Arm]:
    """Fixed sizes of a task, with each of their learning rates."""
    return [
        Arm(
            f"fixed-{depth}{OTHER * number}", depth, "fixed", f"fixed-{depth}", (1.0,), seeds="all",
            protocols=(protocol,), workloads=(task,), inside=True, rate=rate,
        )
        for depth, rates in FIXED_RATES[task].items()
        for number, rate in enumerate(rates)
        if depth in depths
    ]  # fmt: skip


def _guess(task: str, depth: int) -> Arm:
    """1 block that is doubled to so many by copies, as the learning rate falls."""
    options = {"init": "copy", "optimizer_state": "copy", "at": None, "factor": 0.5**0.5}
    return Arm(
        f"copies-{depth}", 1, "shares", f"copies-{depth}", (1.0,), TIMES[depth], options, seeds="all",
        protocols=("guesses",), workloads=(task,), rate=GROWN_RATES[task],
    )  # fmt: skip


def early(task: str, protocol: str, name: str = EARLY, **options: float) -> Arm:
    """A second block comes as a copy, without a trial; ``options``: how the further ones are tried."""
    options = {**TRIED_AS_COPIES, "first": 0.2, "price": 0.25, **options}
    return Arm(
        name, 1, "grow early", name, (1.0,), ((0.1, 2),), options, seeds="all", protocols=(protocol,),
        workloads=(task,), rate=GROWN_RATES[task],
    )  # fmt: skip


GUESSES = tuple(
    arm
    for task in FIXED_RATES
    for arm in (
        *sizes(task, "guesses", FIXED_RATES[task]),
        early(task, "guesses"),
        *(_guess(task, depth) for depth in ((4,) if task == "long" else TIMES)),
    )
)
