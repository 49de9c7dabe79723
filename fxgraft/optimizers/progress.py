"""Whether a seed is trained at all: whether its weights have moved.

A seed whose weights stand still does no harm, so nothing would tell of it: the training loop calls the model
and not the host, its optimizer is another one than the manager's, or there is none.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxgraft.optimizers.gradients import norms
from fxgraft.parts import local
from fxgraft.seeds.seed import Seed

PATIENCE = 20
"""After how many steps in TRAINING to look at a seed, once. A `GradScaler` may skip the first few."""


class Progress:
    """Remembers where the weights of each seed were when it went live.

    Args:
        parameters_of: the parameters of the seed of that name.
    """

    def __init__(self, parameters_of: Callable[[str], Sequence[nn.Parameter]]):
        self._parameters_of = parameters_of
        self._marks: weakref.WeakKeyDictionary[Seed, _Mark] = weakref.WeakKeyDictionary()

    def begin(self, seed: Seed) -> None:
        """The weights of ``seed`` are where they start."""
        self._marks[seed] = _mark(self._parameters_of(seed.name))

    def has_stalled(self, seed: Seed) -> bool:
        """Whether the weights of ``seed`` are still where they started."""
        before, now = self._marks.get(seed), _mark(self._parameters_of(seed.name))
        if before is None or before.norms is None or now.norms is None:
            return False
        return before.version == now.version and before.norms.tolist() == now.norms.tolist()


@dataclass(frozen=True)
class _Mark:
    """Where weights are. Both, as an optimizer that writes through ``.data`` changes no version.

    Attributes:
        version: how often torch has seen them written to.
        norms: one for each parameter, on their device; None where nothing is trainable.
    """

    version: int
    norms: Tensor | None


def _mark(parameters: Sequence[nn.Parameter]) -> _Mark:
    trainable = [p for p in parameters if p.requires_grad and not p.is_meta]
    if not trainable:
        return _Mark(0, None)
    with torch.no_grad():
        return _Mark(sum(p._version for p in trainable), norms([local(p) for p in trainable]))
