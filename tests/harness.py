"""What the tests measure with: bit-exact comparison, recorded runs, snapshots, compile counts, garbage."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import fxgraft
from fxgraft.host.channels import Channels
from fxgraft.testing.checks import (
    Record,
    assert_same_bits,
    counting_backend,
    differences,
    frozen,
    gradients,
    loss_of,
    observed_call,
)

__all__ = [
    "THOROUGH",
    "Run",
    "are_collected",
    "assert_same_bits",
    "counting_backend",
    "differences",
    "frozen",
    "gradients",
    "host_names",
    "loss_of",
    "observed_call",
    "snapshot",
    "state",
    "traced_once",
    "traced_plan",
    "train",
    "warnings_in",
]

THOROUGH = os.environ.get("FXGRAFT_HYPOTHESIS") == "thorough"
"""Whether `make soak` runs the tests: all interrupts, every promise on four ranks."""


def traced_once(trace: Callable[..., fxgraft.Host]) -> Callable[..., fxgraft.Host]:
    """For a function that traces a model: a copy of the host that it returned for the same arguments.

    To trace a model takes many times as long as to copy its host. The function begins with seed 0, and
    the global random stream is left alone.
    """

    @functools.lru_cache(maxsize=64)
    def first(*args: Any) -> fxgraft.Host:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return trace(*args)

    @functools.wraps(trace)
    def copied(*args: Any) -> fxgraft.Host:
        traced = first(*args)
        host = copy.deepcopy(traced)
        host._channels = Channels(traced.example_call(), host._root)  # which a copy does not know
        return host

    return copied


@traced_once
def traced_plan(plan: Any) -> fxgraft.Host:
    """The host of a `tests.strategies.Plan`."""
    return fxgraft.trace(plan.build(), (plan.batch(0),))


def host_names(module: nn.Module) -> list[str]:
    """The names of the parameters that are not a seed's."""
    return [name for name, _ in module.named_parameters() if not name.startswith("_seeds.")]


def state(module: nn.Module) -> Record:
    """Copies of the host's parameters and buffers."""
    return {n: frozen(t) for n, t in module.state_dict().items() if not n.startswith("_seeds.")}


@dataclass(repr=False)
class Run:
    """What a training run left to see, bit for bit."""

    losses: list[Tensor] = field(default_factory=list)
    grads: list[Record] = field(default_factory=list)
    final: Record = field(default_factory=dict)
    rng: Tensor = field(default_factory=lambda: torch.empty(0))

    def assert_same(self, other: Run) -> None:
        """Losses, gradients in each step, final state and the global random stream."""
        assert_same_bits(self.losses, other.losses, "losses")
        for i, (ours, theirs) in enumerate(zip(self.grads, other.grads, strict=True)):
            assert_same_bits(ours, theirs, f"gradients in step {i}")
        assert_same_bits(self.final, other.final, "parameters and buffers")
        assert_same_bits(self.rng, other.rng, "the global random streams")


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    after_step: Callable[[int], None] = lambda i: None,
    clip: Callable[[], None] = lambda: None,
) -> Run:
    """Train from a fixed random state and record everything of the host."""
    run = Run()
    torch.manual_seed(1)
    for i, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = loss_of(model(batch))
        loss.backward()
        clip()
        run.grads.append(gradients(model))
        optimizer.step()
        run.losses.append(loss.detach().clone())
        after_step(i)
    run.final, run.rng = state(model), torch.get_rng_state()
    return run


def snapshot(
    host: fxgraft.Host, batch: Any, optimizers: Iterable[Optimizer] = (), schedulers: Iterable[Any] = ()
) -> Record:
    """Everything that can be seen of a host and its optimizers. Compare with `assert_same_bits`."""
    return {
        "call": observed_call(host, batch),
        "graphs": {name: str(region.graph) for name, region in host.regions.items()},
        "code": {name: region.code for name, region in host.regions.items()},
        "installed": {n: sorted(m.__dict__) for n, m in _inner_modules(host)},
        "state": frozen(dict(host.state_dict())),
        "parameters": [(n, id(p), p.requires_grad) for n, p in host.named_parameters()],
        "grads": {n: frozen(p.grad) for n, p in host.named_parameters()},
        # The bare container of the seeds is made anew at each change; its name and place are what counts.
        "modules": [(n, n == "_seeds" or id(m), m.training) for n, m in host.named_modules()],
        "hooks": {n: _hooks(m) for n, m in host.named_modules()},
        "parameter hooks": {n: _parameter_hooks(p) for n, p in host.named_parameters()},
        "slots": {name: str(slot.node.meta.get("slot")) for name, slot in host.slots.items()},
        "optimizers": [_optimizer(o) for o in optimizers],
        "schedulers": [_plain(dict(s.state_dict())) for s in schedulers],
        "rng": torch.get_rng_state(),
    }


def _inner_modules(host: fxgraft.Host) -> Iterable[tuple[str, nn.Module]]:
    return host.__dict__["_root"].named_modules(remove_duplicate=False)


def _hooks(module: nn.Module) -> dict[str, int]:
    kinds = [name for name in module.__dict__ if name.endswith(("_hooks", "_pre_hooks"))]
    return {kind: len(module.__dict__[kind]) for kind in kinds}


def _parameter_hooks(parameter: Tensor) -> tuple[int, int]:
    after = getattr(parameter, "_post_accumulate_grad_hooks", None)
    return len(parameter._backward_hooks or ()), len(after or ())


def _optimizer(optimizer: Optimizer) -> Record:
    groups = []
    for group in optimizer.param_groups:
        ids = [id(p) for p in group["params"]]
        groups.append({**{k: v for k, v in group.items() if k != "params"}, "ids": ids})
    state = {str(id(p)): dict(values) for p, values in optimizer.state.items()}
    return {"groups": frozen(copy.deepcopy(groups)), "state": frozen(state)}


def _plain(state: Record) -> Record:
    """Scheduler state with what cannot be compared by value replaced by its type."""
    return {
        k: v if isinstance(v, (int, float, str, list, type(None))) else str(type(v)) for k, v in state.items()
    }


def are_collected(refs: Iterable[weakref.ref[Any]]) -> bool:
    """Whether all these objects are gone, cycles included."""
    gc.collect()
    return all(ref() is None for ref in refs)


class OperationRecord(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of all operations that ran inside, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def warnings_in(caplog: Any) -> list[str]:
    """The messages of pytest's ``caplog`` that are warnings or errors."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
