"""One run of a workload: to its end without growth or with one candidate, or through an exploration."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

import fxgraft
from benchmarks.explore.networks import WORKLOADS
from benchmarks.explore.plan import (
    AFTER,
    BATCH,
    BLEND,
    BORN,
    EXPLORED,
    INSERTED,
    ISOLATED,
    LEARNING_RATE,
    WARM_UP,
    WEIGHT_DECAY,
)
from fxgraft.commands import SEED
from fxgraft.explore.measuring import contributions
from fxgraft.manager.dispatch import arguments

TOTAL = WARM_UP + ISOLATED + BLEND + AFTER


class Run:
    """A host, its optimizer and the order of its batches. Runs of one random seed share the warm-up."""

    def __init__(self, name: str, seed: int):
        self.workload, self.name, self.seed = WORKLOADS[name], name, seed
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        x, _ = self.batch()
        self.host = fxgraft.trace(self.workload.make(), (x,))
        self.optimizer = torch.optim.AdamW(
            self.host.parameters(), LEARNING_RATE[name], weight_decay=WEIGHT_DECAY
        )
        self.step = 0
        self.manager = fxgraft.SeedManager(self.host, self.optimizer, check_every=0)

    @classmethod
    def warm(cls, name: str, seed: int) -> Run:
        """One that has trained for ``WARM_UP`` steps."""
        run = cls(name, seed)
        weights, moments, stream = _warmed_up(name, seed)
        run.host.load_state_dict(weights)
        run.optimizer.load_state_dict(copy.deepcopy(moments))
        run.generator.set_state(stream)
        run.step = WARM_UP
        return run

    def batch(self) -> tuple[Tensor, Tensor]:
        return self.workload.batch(self.generator, BATCH[self.name])

    def train(self, steps: int, shadow: bool = False, look: Callable[[], None] = lambda: None) -> None:
        """Train; ``look`` is called after each backward pass."""
        for _ in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = LEARNING_RATE[self.name] * (1 - self.step / TOTAL)
            x, y = self.batch()
            self.optimizer.zero_grad()
            self.workload.loss(self.host(x), y).backward()
            if shadow:
                with self.manager.shadow():
                    self.workload.loss(self.host(x), y).backward()
            look()
            self.optimizer.step()
            self.manager.step()
            self.step += 1

    @torch.no_grad()
    def losses(self) -> list[float]:
        """The held-out losses, one for each batch."""
        self.host.eval()
        found = [float(self.workload.loss(self.host(x), y)) for x, y in self.workload.held_out()]
        self.host.train()
        return found

    def loss(self) -> float:
        return statistics.fmean(self.losses())


@cache
def _warmed_up(name: str, seed: int) -> tuple[Any, Any, Tensor]:
    run = Run(name, seed)
    run.train(WARM_UP)
    return copy.deepcopy(run.host.state_dict()), run.optimizer.state_dict(), run.generator.get_state()


def truth(name: str, seed: int, candidate: SEED | None) -> dict[str, Any]:
    """The held-out loss at the end, and a little after insertion at full alpha; CPU seconds of the growth."""
    run = Run.warm(name, seed)
    began = time.process_time()
    if candidate is None:
        run.train(INSERTED)
        inserted = run.loss()
        run.train(TOTAL - WARM_UP - INSERTED)
        return {"end": run.loss(), "inserted": inserted, "seconds": time.process_time() - began}
    run.manager.germinate(**{**arguments(candidate), "name": "a"})
    run.train(ISOLATED)
    run.manager.blend("a", steps=BLEND)
    run.train(BLEND)
    run.manager.fossilize("a")
    run.train(AFTER)
    seconds = time.process_time() - began
    end = run.loss()
    other = Run.warm(name, seed)
    other.manager.germinate(**{**arguments(candidate), "name": "a", "isolated": False})
    other.manager.blend("a", steps=0)
    other.train(INSERTED)
    return {"end": end, "inserted": other.loss(), "seconds": seconds}


def exploration(name: str, seed: int, radius: float) -> dict[str, Any]:
    """Contributions of all candidates side by side after some steps, the norms of their first gradients."""
    run = Run.warm(name, seed)
    began = time.process_time()
    candidates = run.workload.candidates
    with run.manager.together():
        for i, candidate in enumerate(candidates):
            objective = fxgraft.Objective("trust", radius)
            run.manager.germinate(**{**arguments(candidate), "name": f"c{i}", "objective": objective})
    seeds = [run.manager.seeds[f"c{i}"] for i in range(len(candidates))]
    found: dict[str, Any] = {"parameters": [sum(p.numel() for p in s.module.parameters()) for s in seeds]}
    seconds, done = {}, 0
    for steps in EXPLORED:
        run.train(steps - done)
        done = steps
        now = contributions(
            run.host, seeds, run.losses, at=1.0, repeats=1, alone=True, mean=float,
            inactivity=run.manager._lifecycle.inactivity,
        )  # fmt: skip
        found[f"after {steps}"] = [now[s.name].contribution for s in seeds]
        seconds[steps] = time.process_time() - began
    bare = Run.warm(name, seed)
    began = time.process_time()
    bare.train(EXPLORED[-1])
    plain = (time.process_time() - began) / EXPLORED[-1]
    return {
        **found,
        "seconds": {str(n): spent - plain * n for n, spent in seconds.items()},
    }


def at_birth(name: str, seed: int) -> dict[str, Any]:
    """Scores from the gradients of candidates that stay as they were born."""
    run = Run.warm(name, seed)
    candidates = run.workload.candidates
    began = time.process_time()
    with run.manager.together():
        for i, candidate in enumerate(candidates):
            run.manager.germinate(**{**arguments(candidate), "name": f"c{i}"})
    parameters = [list(run.manager.seeds[f"c{i}"].module.parameters()) for i in range(len(candidates))]
    born = [[p.detach().clone() for p in of_one] for of_one in parameters]
    first = [[torch.zeros_like(p) for p in of_one] for of_one in parameters]
    second = [[torch.zeros_like(p) for p in of_one] for of_one in parameters]
    norms: list[float] = []

    @torch.no_grad()
    def look() -> None:
        if not norms:
            norms.extend(sum(float(p.grad.square().sum()) for p in of_one) ** 0.5 for of_one in parameters)
        for of_one, ones, squares in zip(parameters, first, second, strict=True):
            for p, one, square in zip(of_one, ones, squares, strict=True):
                one += p.grad / BORN
                square += p.grad.square() / BORN

    for _ in range(BORN):
        run.train(1, look=look)
        with torch.no_grad():
            for of_one, as_born in zip(parameters, born, strict=True):
                for p, b in zip(of_one, as_born, strict=True):
                    p.copy_(b)
    seconds = time.process_time() - began
    sizes = [sum(p.numel() for p in of_one) for of_one in parameters]
    pairs = [list(zip(ones, squares, strict=True)) for ones, squares in zip(first, second, strict=True)]
    adam = [sum(float((m.square() / (v.sqrt() + 1e-12)).sum()) for m, v in one) for one in pairs]
    return {
        "parameters": sizes,
        "adam times parameters": [fall * size for fall, size in zip(adam, sizes, strict=True)],
        "gradient": norms,
        "mean gradient": [sum(float(m.square().sum()) for m, _ in of_one) ** 0.5 for of_one in pairs],
        "adam": adam,
        "fisher": [sum(float((m.square() / (v + 1e-12)).sum()) for m, v in one) for one in pairs],
        "seconds": seconds,
    }


def shadowed(name: str, seed: int, candidate: SEED, steps: int) -> dict[str, Any]:
    """The contribution of one candidate that learns alone from the shadow pass: a run for each."""
    run = Run.warm(name, seed)
    run.manager.germinate(**{**arguments(candidate), "name": "a", "objective": "shadow"})
    run.train(steps, shadow=True)
    return {"contribution": run.manager.measure("a", run.loss)}
