"""Gates: what has to be true of a seed before it may go on.

A gate is a predicate with a reason. Gates compose with ``&``. What was never measured does not pass::

    SeedManager(host, optimizer, gates={"blend": Sane() & Trained(steps=200), "fossilize": Worthy(0.01)})

By default a manager asks for `Ran` and `Sane` before a blend and before a fossilization; controllers ask for
more. ``force=True`` at `SeedManager.blend` and `SeedManager.fossilize` asks for none.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.util.text import pluralize


@dataclass(frozen=True)
class Verdict:
    """The result of a gate: whether the seed passes, and the reason.

    Attributes:
        passed: whether the seed passes.
        reason: why, in words, as in the event ``gate_event``.
    """

    passed: bool
    reason: str

    def __bool__(self) -> bool:
        return self.passed


class Gate(ABC):
    """A condition on a seed."""

    @abstractmethod
    def __call__(self, seed: Seed) -> Verdict:
        """Judge ``seed``."""

    def __and__(self, other: Gate) -> Gate:
        return Both(self, other)


@dataclass(frozen=True)
class Both(Gate):
    """Passes if two gates pass. The first one that fails gives the reason.

    Attributes:
        first: the gate that is asked first.
        second: the gate that is asked if the first one passes.
    """

    first: Gate
    second: Gate

    def __call__(self, seed: Seed) -> Verdict:
        return self.first(seed) and self.second(seed)


@dataclass(frozen=True)
class Ran(Gate):
    """Passes if the seed runs, or may run soon.

    It refuses a seed that has never run although training continues (its calls run without seeds, or the
    loop calls the model and not the host), and one that no call has reached in 20 steps.
    """

    def __call__(self, seed: Seed) -> Verdict:
        # Steps in which it was trained, too: on several ranks all have counted the same.
        if seed.did_not_run and not seed.trained_steps and not seed.runs:
            return Verdict(False, f"it has never run: {seed.did_not_run}")
        return Verdict(True, f"it has run in {pluralize(seed.runs, 'call')}")


@dataclass(frozen=True)
class Sane(Gate):
    """Passes if all parameters of the seed are finite."""

    def __call__(self, seed: Seed) -> Verdict:
        if seed.module is None:
            return Verdict(False, "it has no module")
        for name, parameter in seed.module.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                return Verdict(False, f"{name} has NaN or inf")
        return Verdict(True, "its parameters are finite")


@dataclass(frozen=True)
class Trained(Gate):
    """Passes if the seed was updated in ``steps`` steps, and its *measured* loss is no worse than at alpha 0.

    First-order predictions of that loss have been wrong by orders of magnitude, so only a
    measurement counts (``SeedManager.measure``).

    Attributes:
        steps: the least number of steps in which it ran and was updated. Default 100.
        tolerance: by how much the loss may be worse, as a share of the loss at alpha 0. Default 0.
    """

    steps: int = 100
    tolerance: float = 0.0

    def __call__(self, seed: Seed) -> Verdict:
        if seed.trained_steps < self.steps:
            why = "" if (ran := Ran()(seed)) else f": {ran.reason}"
            return Verdict(False, f"it has trained {seed.trained_steps} of {self.steps} steps{why}")
        contribution = seed.contribution
        if contribution is None:
            return Verdict(False, "its contribution was never measured")
        if not contribution >= -self.tolerance * abs(seed.loss_without or 0.0):
            return Verdict(False, f"it makes the loss worse by {-contribution:.4g}")
        return Verdict(True, f"it has trained {seed.trained_steps} steps and contributes {contribution:.4g}")


@dataclass(frozen=True)
class Blended(Gate):
    """Passes if alpha has reached the target of the blend."""

    def __call__(self, seed: Seed) -> Verdict:
        reached = seed.stage is Stage.HOLDING
        return Verdict(reached, f"it is {seed.stage.name} at alpha {seed.alpha:.3g}")


@dataclass(frozen=True)
class Worthy(Gate):
    """Passes if the contribution (measured loss without the seed minus with it) is above a threshold.

    Attributes:
        threshold: in units of the loss. Default 0.
    """

    threshold: float = 0.0

    def __call__(self, seed: Seed) -> Verdict:
        contribution = seed.contribution
        if contribution is None or math.isnan(contribution):
            return Verdict(False, "its contribution was never measured")
        return Verdict(
            contribution > self.threshold,
            f"it contributes {contribution:.4g} (threshold {self.threshold:.4g})",
        )


DEFAULT_GATES: Mapping[str, Gate] = MappingProxyType(
    {"blend": Ran() & Sane(), "fossilize": Ran() & Sane() & Blended()}
)
