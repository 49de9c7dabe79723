"""Everything the demo measures: loss, FLOPs, gains, isolation, compilations. Nothing here trains the host.

Measurements run in eager mode, so that they compile nothing.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxgraft import Host, SeedManager
from fxgraft.demo.data import BATCH, Part
from fxgraft.demo.model import BLUEPRINTS
from fxgraft.host import engine
from fxgraft.telemetry import logger
from fxgraft.util import _torch
from fxgraft.util.bits import same_tensor
from fxgraft.util.flops import count_flops


@dataclass
class CountingBackend:
    """Inductor, counting the graphs that it is given: a recompile is a graph too."""

    compiles: int = 0

    def __call__(self, graph_module: Any, inputs: list[Any], **options: Any) -> Callable[..., Any]:
        self.compiles += 1
        return _torch.compile_with_inductor(graph_module, inputs, **options)


@torch.no_grad()
def evaluate(model: nn.Module, part: Part) -> tuple[float, float]:
    """Loss and accuracy in eval mode. A compiled host runs in eager mode for it."""
    eager = (
        engine.probing(model, model.structure, model.phase) if isinstance(model, Host) else nullcontext(model)
    )
    model.eval()
    try:
        with eager as called:
            scores = called(part.images)
    finally:
        model.train()
    accuracy = (scores.argmax(1) == part.labels).double().mean()
    return float(F.cross_entropy(scores, part.labels)), float(accuracy)


def contribution(manager: SeedManager, seed: str, part: Part) -> float:
    """The loss without the seed minus the loss with it: positive where it helps."""
    return manager.measure(seed, lambda: evaluate(manager.host, part)[0])


@dataclass
class Probe:
    """Tries candidates on a copy of the host, all side by side: isolated seeds do not feel each other.

    Attributes:
        batches: to train on. Endless.
        held_out: to measure on.
        steps, rate: of the trial.
        flops: what all trials have cost so far.
    """

    batches: Iterator[Part]
    held_out: Part
    steps: int = 20
    rate: float = 1e-2
    flops: int = 0

    def __call__(self, host: Host, candidates: Sequence[tuple[str, str]]) -> list[float]:
        """The held-out loss that each candidate would save at alpha 1."""
        twin = copy.deepcopy(host)
        with _no_warnings():  # that this manager does not save the fossils of the copy: it saves nothing
            manager = SeedManager(twin)
        seeds = [manager.germinate(slot, BLUEPRINTS[blueprint]).name for slot, blueprint in candidates]
        optimizer = torch.optim.AdamW(manager.seed_parameters(), self.rate)
        self.flops += self.steps * step_flops(twin)
        for _ in range(self.steps):
            batch = next(self.batches)
            twin.zero_grad()
            F.cross_entropy(twin(batch.images), batch.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            manager.step()
        self.flops += 2 * len(seeds) * forward_flops(twin, len(self.held_out.labels))
        return [contribution(manager, seed, self.held_out) for seed in seeds]


@contextmanager
def _no_warnings() -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass
class IsolationCheck:
    """Compares the host's gradients with isolated seeds in it to those without, to the bit.

    Attributes:
        parameters: how many were compared so far.
        violations: how many of them had different gradients.
    """

    parameters: int = 0
    violations: int = 0

    def compare(self, host: Host, seeds: Collection[str], batch: Part) -> int:
        """Run one batch with and without ``seeds``, on copies; return how many gradients differ."""
        without = host.structure
        for seed in seeds:
            without = without.without(seed)
        ours, twin = _gradients(copy.deepcopy(host), batch), copy.deepcopy(host)
        of_seeds = {id(parameter) for seed in seeds for parameter in twin.graft(seed).parameters()}
        names = [name for name, parameter in twin.named_parameters() if id(parameter) not in of_seeds]
        with engine.probing(twin, without, twin.phase):
            theirs = _gradients(twin, batch)
        differing = sum(not same_tensor(ours[name], theirs[name]) for name in names)
        self.parameters += len(names)
        self.violations += differing
        return differing


def _gradients(model: nn.Module, batch: Part) -> dict[str, Tensor]:
    state = torch.get_rng_state()
    model.zero_grad()
    F.cross_entropy(model(batch.images), batch.labels).backward()  # type: ignore[no-untyped-call]
    torch.set_rng_state(state)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def step_flops(model: nn.Module, batch: int = BATCH) -> int:
    """Floating point operations of matrix products and convolutions, forward and backward."""
    twin = copy.deepcopy(model)
    return count_flops(lambda: twin(torch.zeros(batch, 1, 8, 8)).sum().backward())


def forward_flops(model: nn.Module, batch: int = 1) -> int:
    """The same, forward only."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        return count_flops(lambda: twin(torch.zeros(batch, 1, 8, 8)))


@dataclass
class FlopLedger:
    """The FLOPs of a training run, step by step; a structure and phase is counted once and remembered."""

    total: int = 0
    _known: dict[object, int] = field(default_factory=dict)

    def add_step(self, model: nn.Module) -> None:
        """One more training step in the structure that ``model`` has now."""
        key = (model.structure.key, model.phase) if isinstance(model, Host) else type(model)
        if key not in self._known:
            self._known[key] = step_flops(model)
        self.total += self._known[key]
