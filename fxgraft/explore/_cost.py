"""What a growth costs beside the training: the FLOPs of what is tried, and its evaluations.

    explored    forward and backward passes of candidates that learn in isolation
    tried       the same of the candidate on trial, until it is judged or faded out
    evaluated   evaluations, each as one of the host when the growth last looked at it

A training step counts as three forward passes. Candidates have FLOPs at the shape of the example call; how
large the batches of the training are is seen in one of its steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fxgraft.explore._growth_state import GrowthState
from fxgraft.explore.measuring import Evaluate, example_size
from fxgraft.explore.table import LEARNING, Row
from fxgraft.host.host import Host

TRAINING = 3
"""Forward passes whose FLOPs a training step has: its backward pass counts as two."""


class CountedEvaluation:
    """An evaluation that counts its calls, and the seconds that they take."""

    def __init__(self, evaluate: Evaluate):
        self.evaluate = evaluate
        self.calls, self.seconds = 0, 0.0

    def __call__(self) -> Any:
        began = time.perf_counter()
        try:
            return self.evaluate()
        finally:
            self.calls += 1
            self.seconds += time.perf_counter() - began


class BatchSize:
    """Sees in one training step how large its batches are: the elements of the first tensor of each call."""

    def __init__(self, host: Host):
        self._host = host
        self._elements = 0
        self._ours: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None

    def listen(self) -> None:
        """From now on."""
        links, self._elements = self._host._links, 0
        before = links.on_call

        def seen(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled():
                self._elements += next(
                    (x.numel() for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), 0
                )
            if before is not None:
                before(args, kwargs)

        links.on_call = self._ours = seen
        self._before = before

    def end(self) -> float | None:
        """Listen no longer; return how many times the example's elements a step had, None if it had none."""
        if self._ours is not None and self._host._links.on_call is self._ours:
            self._host._links.on_call = self._before
        self._ours = None
        example = example_size(self._host)
        return self._elements / example if self._elements and example else None


class GrowthCost:
    """Adds up what a growth costs; what it has to remember is in the `GrowthState`.

    Args:
        host: the host that grows.
        evaluate: the growth's evaluation.
    """

    def __init__(self, host: Host, evaluate: CountedEvaluation):
        self._evaluate, self._batch = evaluate, BatchSize(host)
        self._own_seconds, self._explored = 0.0, 0
        self._listens = False

    def explores(self, memory: GrowthState, rows: Iterable[Row]) -> None:
        """These candidates learn from the next step on."""
        learning = [row.flops for row in rows if row.status == LEARNING]
        self._explored = sum(flops or 0 for flops in learning)
        memory.unknown = memory.unknown or None in learning

    def step(self, memory: GrowthState, is_exploring: bool, is_trying: bool) -> None:
        """One training step of the host has passed."""
        if self._listens:
            memory.batch, self._listens = self._batch.end(), False
        if memory.batch is None:
            self._batch.listen()
            self._listens = True
        if is_exploring:
            memory.explored += TRAINING * self._explored
        if is_trying:
            flops = (memory.row or {}).get("flops")
            memory.tried += TRAINING * (flops or 0)
            memory.unknown = memory.unknown or flops is None

    def settle(self, memory: GrowthState) -> None:
        """Write the evaluations since the last time into the memory."""
        memory.evaluations += self._evaluate.calls
        memory.evaluated += self._evaluate.calls * (memory.evaluation or 0)
        self._evaluate.calls = 0

    def timed(self, began: float, evaluated: float) -> None:
        """Work that began then, when the evaluations had taken so long, has ended."""
        self._own_seconds += time.perf_counter() - began - (self._evaluate.seconds - evaluated)

    @property
    def evaluated_seconds(self) -> float:
        return self._evaluate.seconds

    def end(self) -> None:
        """The growth has ended."""
        if self._listens:
            self._batch.end()
            self._listens = False

    def to_dict(self, memory: GrowthState) -> dict[str, Any]:
        """See `AutoGrowth.cost`."""
        self.settle(memory)
        batch = 1.0 if memory.batch is None else memory.batch
        explored, tried = round(memory.explored * batch), round(memory.tried * batch)
        step = TRAINING * (memory.flops or 0) * batch
        evaluated = memory.evaluated if memory.evaluation is not None else None
        return {
            "explored": explored,
            "tried": tried,
            "evaluated": evaluated,
            "evaluations": memory.evaluations,
            "training_steps": (explored + tried + (evaluated or 0)) / step if step else None,
            "complete": not memory.unknown and evaluated is not None,
            "seconds": self._own_seconds + self._evaluate.seconds,
        }
