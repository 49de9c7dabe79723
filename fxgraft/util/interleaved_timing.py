"""Interleaved timing of training steps: all contenders run in each round, so that times can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Step = Callable[[], object]


class Contender:
    """A model in training: forward, backward, one step of AdamW.

    Args:
        module: is trained.
        args, kwargs: of each call.
        run: what is called in the place of ``module``, or None.

    Attributes:
        after: called after each step.
    """

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        run: Callable[..., Any] | None = None,
    ):
        # Not `run or module`: a compiled module is asked for its length by that, and need not have one.
        self._call, self._args, self._kwargs = module if run is None else run, args, kwargs
        self.optimizer = torch.optim.AdamW(module.parameters(), 1e-4)
        self.after: Callable[[], None] = lambda: None

    def step(self) -> float:
        """One training step; its loss is the sum of the mean squares of all outputs that take a gradient.

        Raises:
            ValueError: there is no such output.
        """
        self.optimizer.zero_grad()
        leaves = pytree.tree_leaves(self._call(*self._args, **self._kwargs))
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not outputs:
            raise ValueError("the model: expected an output that takes a gradient; there is none")
        loss = torch.stack([output.float().square().mean() for output in outputs]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.after()
        return float(loss.detach())  # waits for the device


@dataclass(frozen=True)
class Timed:
    """Milliseconds per step of one contender (the median of all rounds), and its ratio to the first one.

    Attributes:
        ratio, low, high: median, lowest and highest over the rounds.
    """

    name: str
    ms: float
    ratio: float
    low: float
    high: float


def compare(samples: Mapping[str, Sequence[float]]) -> tuple[Timed, ...]:
    """What `time_interleaved` found, against the first contender; a ratio is taken within each round."""
    first = next(iter(samples.values()))
    return tuple(_timed(name, times, first) for name, times in samples.items())


def time_interleaved(
    contenders: Mapping[str, Step], rounds: int, steps: int, shuffle: Callable[[list[str]], None]
) -> dict[str, list[float]]:
    """Run each contender for ``steps`` steps in each of ``rounds`` rounds; seconds per step, for each round.

    The order is shuffled in each round, so that drift and other load on the machine reach all of them.
    """
    order = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            samples[name].append(_time_round(contenders[name], steps))
    return samples


def repeat(step: Step, times: int) -> None:
    """Make some steps."""
    for _ in range(times):
        step()


def _time_round(step: Step, steps: int) -> float:
    step()  # untimed: the caches are full of another contender's tensors
    began = time.perf_counter()
    repeat(step, steps)
    return (time.perf_counter() - began) / steps


def _timed(name: str, times: Sequence[float], first: Sequence[float]) -> Timed:
    ratios = [ours / theirs for ours, theirs in zip(times, first, strict=True)]
    ms = statistics.median(times) * 1e3
    return Timed(name, ms, statistics.median(ratios), min(ratios), max(ratios))
