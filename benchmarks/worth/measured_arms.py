"""The arms of the seventh experiment: blocks that are measured several times before they stay.

See PREREGISTERED_SEVENTH.md. Learning rates are those of the sixth.
"""

from __future__ import annotations

from benchmarks.worth.guesses_arms import EARLY, early, sizes

MEASURED = "grow-measured"
"""The primary arm: as `EARLY`, but what a block gives is measured eight times, and chance is allowed for."""
BEST = {"gpt": (2,), "brown": (2,), "cnn": (2,), "thin": (3, 4), "long": (3, 4)}
"""The sizes that were best in the sixth experiment, or as good, by task."""
BESIDE = ("cnn", "thin")
"""Tasks on which `EARLY` runs beside it."""
SEVERAL = {"measurements": 8, "standard_errors": 1.0, "price": 0.1}

MEASURED_ARMS = tuple(
    arm
    for task, depths in BEST.items()
    for arm in (
        early(task, "measured", MEASURED, **SEVERAL),
        *((early(task, "measured", EARLY),) if task in BESIDE else ()),
        *sizes(task, "measured", depths),
    )
)
