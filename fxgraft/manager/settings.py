"""What a manager is made with, checked before anything is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fxgraft.gates import Gate
from fxgraft.host.host import Host
from fxgraft.optimizers.wrapped import inner
from fxgraft.telemetry import Sink
from fxgraft.util import validate

ENABLED_VARIABLE = "FXGRAFT_DYNAMIC_SEEDS"
_SWITCH = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)
_GATED = ("blend", "fossilize")


def host_of(given: nn.Module) -> Host:
    """The host, which may be inside what is around it on several ranks. Raises `TypeError`."""
    given = _called(given)
    inner = given if isinstance(given, Host) else getattr(given, "module", None)
    if isinstance(given, AveragedModel):
        raise TypeError(
            "host: expected what is trained; got its average, which fxgraft.averaging.follow leads"
        )
    if isinstance(inner, Host):
        return inner
    if isinstance(given, DistributedDataParallel):
        hosts = [module for module in given.modules() if isinstance(module, Host)]
        if len(hosts) == 1:
            return hosts[0]
        if hosts:
            raise TypeError(
                f"host: expected one in the DistributedDataParallel; there are {len(hosts)}. Make a manager "
                f"for each: SeedManager(module.host, ..., ddp=ddp)"
            )
    raise TypeError(
        f"host: expected a fxgraft.Host (from fxgraft.trace) or DistributedDataParallel "
        f"around one; got {type(given).__name__}"
    )


def wrapper_of(given: nn.Module, host: Host, ddp: nn.Module | None) -> nn.Module:
    """What is called in training: ``ddp``, if it is given, or ``given``. Raises `TypeError`."""
    if ddp is None:
        return _called(given)
    ddp = _called(ddp)
    if not isinstance(ddp, DistributedDataParallel) or all(module is not host for module in ddp.modules()):
        raise TypeError(
            f"ddp: expected the DistributedDataParallel around a module that contains the host; "
            f"got {type(ddp).__name__}"
        )
    return ddp


def _called(given: nn.Module) -> nn.Module:
    """What Lightning's Fabric calls in the place of the module that it wraps, or ``given`` itself."""
    return vars(given).get("_modules", {}).get("_forward_module", given)  # type: ignore[no-any-return]


def optimizers_of(given: Optimizer | Sequence[Optimizer] | None) -> tuple[Optimizer, ...]:
    """All optimizers, without the wrappers of Accelerate and Fabric. Raises `TypeError`."""
    if given is None:
        return ()
    several = (given,) if isinstance(given, Optimizer) else given
    wanted = "a torch.optim.Optimizer, a sequence of them, or None"
    return tuple(map(inner, _several("optimizer", wanted, several, lambda one: isinstance(one, Optimizer))))


def parameters_of(optimizers: Sequence[Optimizer]) -> Iterator[nn.Parameter]:
    """What ``optimizers`` train."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        yield from group["params"]


def schedulers_of(given: Sequence[Any]) -> tuple[Any, ...]:
    """All schedulers, without the wrappers of Accelerate and Fabric. Raises `TypeError`."""
    # Only what a checkpoint wants of one: a training loop's own state goes along so.
    found = _several(
        "schedulers",
        "a sequence of learning-rate schedulers",
        given,
        lambda one: callable(getattr(one, "load_state_dict", None)),
    )
    return tuple(map(inner, found))


def sinks_of(given: Sequence[Sink]) -> tuple[Sink, ...]:
    """All sinks. Raises `TypeError`."""
    return _several("sinks", "a sequence of callables that take an event", given, callable)


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
    """Raise `ValueError` for an invalid number."""
    validate.integer("check_every", check_every)
    validate.integer("cooldown", cooldown)
    validate.integer("metrics_every", metrics_every)
    if prefetch_timeout is not None:
        validate.number("prefetch_timeout", prefetch_timeout, least=0)
    if shard_from is not None:
        validate.integer("shard_from", shard_from)


def is_enabled(given: bool | None) -> bool:
    """As given, or else as the environment has it. Raises `ValueError`."""
    if given is not None:
        return validate.boolean("enabled", given)
    said = os.environ.get(ENABLED_VARIABLE, "1").strip().lower()
    if said not in _SWITCH:
        raise ValueError(f"{ENABLED_VARIABLE}: expected one of {', '.join(_SWITCH)}; got {said!r}")
    return _SWITCH[said]


def _several(name: str, wanted: str, given: Any, is_one: Callable[[Any], bool]) -> tuple[Any, ...]:
    _require(name, wanted, isinstance(given, Sequence) and not isinstance(given, str), given)
    for one in given:
        _require(name, wanted, is_one(one), one)
    return tuple(given)


def _require(name: str, wanted: str, is_so: bool, given: object) -> None:
    if not is_so:
        raise TypeError(f"{name}: expected {wanted}; got {type(given).__name__}")
