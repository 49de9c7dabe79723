"""Whether a seed is trained: in which steps it ran and its weights were written to.

A seed whose weights do not change does no harm, so nothing else would reveal it: its calls fall back, the
training loop calls the model and not the host, its optimizer is another one than the manager's, or there is
none.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxgraft.optimizers.gradients import norms
from fxgraft.seeds.seed import Seed
from fxgraft.util.tensors import local_tensor

PATIENCE = 20
"""After how many steps to tell of a seed that is not trained. A `GradScaler` may skip the first few."""


class SeedProgress:
    """Follows the weights of each seed from step to step.

    Costs a look at version counters on the host; nothing waits for a device where gradients arrive and
    optimizers write to parameters as torch's do.

    Args:
        parameters_of: the parameters of the seed of that name.
    """

    def __init__(self, parameters_of: Callable[[str], Sequence[nn.Parameter]]):
        self._parameters_of = parameters_of
        self._known: weakref.WeakKeyDictionary[Seed, _Last] = weakref.WeakKeyDictionary()

    def begin(self, seed: Seed) -> None:
        """The weights of ``seed`` are where they start."""
        weights = self._weights(seed)
        self._known[seed] = _Last(_version(weights), _norms(weights), seed.runs)

    def learned(self, seed: Seed, arrived: bool) -> bool:
        """Whether ``seed`` ran in the training step that has ended, and was updated; call it once in each.

        A seed without anything to update has nothing to wait for: it is enough that it ran.

        Args:
            seed: a live one.
            arrived: whether gradients arrived at its parameters in this step: then it ran.
        """
        last, weights = self._known[seed], self._weights(seed)
        moved = not weights or _moved(last, weights, arrived)
        if not moved or arrived:
            last.runs = None
            return moved and arrived
        # Gradients that were not accumulated (torch.autograd.grad), or momentum without a call: the count of
        # runs tells. Where it was not read after the step before, this one gets no credit.
        before, last.runs = last.runs, seed.runs
        return before is not None and last.runs > before

    def has_weights(self, seed: Seed) -> bool:
        """Whether there is anything in it to train."""
        return bool(self._weights(seed))

    def _weights(self, seed: Seed) -> list[nn.Parameter]:
        return [p for p in self._parameters_of(seed.name) if p.requires_grad and not p.is_meta]


@dataclass
class _Last:
    """What was known after the last step.

    Attributes:
        version: how often torch has seen the weights written to.
        norms: one for each weight, on their device; None where that is not known.
        runs: how often the seed had run; None where that was not read.
    """

    version: int
    norms: Tensor | None
    runs: int | None


def _moved(last: _Last, weights: Sequence[nn.Parameter], arrived: bool) -> bool:
    """Whether weights were written to since ``last``, which is brought up to date."""
    version = _version(weights)
    if version != last.version:
        last.version, last.norms = version, None
        return True
    if not arrived:
        return False
    # An optimizer that writes through ``.data`` changes no version.
    before, last.norms = last.norms, _norms(weights)
    return before is not None and last.norms is not None and before.tolist() != last.norms.tolist()


def _version(weights: Sequence[nn.Parameter]) -> int:
    return sum(weight._version for weight in weights)


def _norms(weights: Sequence[nn.Parameter]) -> Tensor | None:
    if not weights:
        return None
    with torch.no_grad():
        return norms([local_tensor(weight) for weight in weights])
