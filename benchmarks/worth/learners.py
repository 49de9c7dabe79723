"""All kinds of networks in training, by the names that arms have for them."""

from __future__ import annotations

from benchmarks.worth.by_fxgraft import (
    Anything,
    Autogrown,
    ByShares,
    Deepened,
    Grown,
    GrownEarly,
    Tried,
    Widened,
)
from benchmarks.worth.by_gromo import ByGromo
from benchmarks.worth.by_hand import Net2Net, Stacked, Stochastic
from benchmarks.worth.by_peft import Adapted
from benchmarks.worth.by_width import AnyWidth, Wider
from benchmarks.worth.learner import Learner, Setting

__all__ = ["KINDS", "Learner", "Setting"]

KINDS: dict[str, type[Learner]] = {
    "fixed": Learner,
    "plain": Learner,
    "stack": Stacked,
    "net2net": Net2Net,
    "stochastic": Stochastic,
    "deepen": Deepened,
    "tried": Tried,
    "widen": Widened,
    "autogrow": Autogrown,
    "grow": Grown,
    "grow early": GrownEarly,
    "anything": Anything,
    "shares": ByShares,
    "adapt": Adapted,
    "wider": Wider,
    "any width": AnyWidth,
    "gromo": ByGromo,
}
