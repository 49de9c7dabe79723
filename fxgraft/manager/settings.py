"""What a manager is made with, checked before anything is made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxgraft import expect
from fxgraft.gates import Gate
from fxgraft.host.host import Host
from fxgraft.telemetry import Sink

ENABLED_VARIABLE = "FXGRAFT_DYNAMIC_SEEDS"
_ENABLED = {"1": True, "true": True, "yes": True, "on": True}
_DISABLED = {"0": False, "false": False, "no": False, "off": False}
_GATED = ("blend", "fossilize")


def host_of(given: nn.Module) -> Host:
    """The host, which may be inside what is around it on several ranks. Raises `TypeError`."""
    inner = given if isinstance(given, Host) else getattr(given, "module", None)
    if not isinstance(inner, Host):
        raise TypeError(
            f"host: expected a fxgraft.Host (from fxgraft.trace) or DistributedDataParallel "
            f"around one; got {type(given).__name__}"
        )
    return inner


def optimizers_of(given: Optimizer | Sequence[Optimizer] | None) -> tuple[Optimizer, ...]:
    """All optimizers. Raises `TypeError`."""
    if given is None:
        return ()
    wanted = "a torch.optim.Optimizer, a sequence of them, or None"
    several = (given,) if isinstance(given, Optimizer) else _sequence("optimizer", wanted, given)
    for one in several:
        _require("optimizer", wanted, isinstance(one, Optimizer), one)
    return several


def parameters_of(optimizers: Sequence[Optimizer]) -> Iterator[nn.Parameter]:
    """What ``optimizers`` train."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        yield from group["params"]


def schedulers_of(given: Sequence[Any]) -> tuple[Any, ...]:
    """All schedulers. Raises `TypeError`."""
    wanted = "a sequence of learning-rate schedulers"
    several = _sequence("schedulers", wanted, given)
    for one in several:  # only what a checkpoint wants of it: a training loop's own state goes along so
        _require("schedulers", wanted, callable(getattr(one, "load_state_dict", None)), one)
    return several


def sinks_of(given: Sequence[Sink]) -> tuple[Sink, ...]:
    """All sinks. Raises `TypeError`."""
    wanted = "a sequence of callables that take an event"
    several = _sequence("sinks", wanted, given)
    for one in several:
        _require("sinks", wanted, callable(one), one)
    return several


def gates_of(given: Mapping[str, Gate]) -> Mapping[str, Gate]:
    """Action -> gate. Raises `TypeError`, and `ValueError` for an action that has no gate."""
    _require("gates", f"a mapping from {' or '.join(_GATED)} to a gate", isinstance(given, Mapping), given)
    for action, gate in given.items():
        if action not in _GATED:
            raise ValueError(f"gates: expected {' or '.join(map(repr, _GATED))}; got {action!r}")
        _require(f"gates[{action!r}]", "a gate", callable(gate), gate)
    return given


def check_numbers(
    check_every: int,
    cooldown: int,
    metrics_every: int,
    prefetch_timeout: float | None,
    shard_from: int | None,
) -> None:
    """Raise `ValueError` for a number that cannot be."""
    expect.whole("check_every", check_every)
    expect.whole("cooldown", cooldown)
    expect.whole("metrics_every", metrics_every)
    if prefetch_timeout is not None:
        expect.number("prefetch_timeout", prefetch_timeout, least=0)
    if shard_from is not None:
        expect.whole("shard_from", shard_from)


def is_enabled(given: bool | None) -> bool:
    """As given, or else as the environment has it. Raises `ValueError`."""
    if given is not None:
        return expect.flag("enabled", given)
    said = os.environ.get(ENABLED_VARIABLE, "1").strip().lower()
    known = _ENABLED | _DISABLED
    if said not in known:
        raise ValueError(f"{ENABLED_VARIABLE}: expected one of {', '.join(known)}; got {said!r}")
    return known[said]


def _sequence(name: str, wanted: str, given: Any) -> tuple[Any, ...]:
    is_sequence = isinstance(given, Sequence) and not isinstance(given, str)
    _require(name, wanted, is_sequence, given)
    return tuple(given)


def _require(name: str, wanted: str, is_so: bool, given: object) -> None:
    if not is_so:
        raise TypeError(f"{name}: expected {wanted}; got {type(given).__name__}")
