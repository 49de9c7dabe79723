"""Warm-up, constant, decay: the learning rate as a share of its highest."""

from __future__ import annotations

WARM_UP, DECAY = 100, 0.2


def warm_up(total: int) -> int:
    """Steps of linear warm-up of a run of ``total`` steps."""
    return max(1, min(WARM_UP, total // 10))


def decay_start(total: int) -> int:
    """The first step of the decay of a run of ``total`` steps."""
    return total - max(1, round(DECAY * total))


def constant(step: int, warm: int) -> float:
    """Before the decay: rises to 1 in ``warm`` steps."""
    return min(1.0, (step + 1) / warm)


def decaying(step: int, total: int) -> float:
    """From 1 at `decay_start` on a line that is 0 after the last step."""
    return (total - step) / (total - decay_start(total))
