"""What a manager is made with, checked before anything is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fxgraft.gates import Gate
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.lifecycle.isolation_monitor import DEFAULT_INTERVAL
from fxgraft.optimizers.wrapped import inner
from fxgraft.telemetry import Sink, logger
from fxgraft.util import validate

ENABLED_VARIABLE = "FXGRAFT_DYNAMIC_SEEDS"
_SWITCH = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)
HELPERS = ("auto", "off")
_GATED = ("blend", "fossilize")


@dataclass(frozen=True)
class ManagerOptions:
    """Options of `SeedManager` that are data.

    Attributes:
        enabled: False: a germination does nothing, which is recorded. Default None: the environment variable
            ``FXGRAFT_DYNAMIC_SEEDS`` decides (``0`` disables), and otherwise True.
        strict: whether a violated isolation raises `IsolationError`. Default False: it is logged.
        check_every: training steps between two isolation checks; 0: none. Default 500.
        cooldown: steps for which a slot refuses new seeds after a cull there. Default 0.
        prefetch_timeout: seconds until a change with ``wait=False`` is given up; None: never. Default 300.
        metrics_every: training steps between two entries of the journal; 0: none. Default 0.
        helper: ``"auto"`` (the default: a compiler process where one can be started) or ``"off"``.
        shard_from: elements from which a parameter of a seed is sharded on a sharded host. Default None:
            65,536.

    Raises:
        ValueError: one is invalid.
    """

    enabled: bool | None = None
    strict: bool = False
    check_every: int = DEFAULT_INTERVAL
    cooldown: int = 0
    prefetch_timeout: float | None = 300.0
    metrics_every: int = 0
    helper: str = "auto"
    shard_from: int | None = None

    def __post_init__(self) -> None:
        for name in ("check_every", "cooldown", "metrics_every"):
            validate.integer(name, getattr(self, name))
        if self.prefetch_timeout is not None:
            validate.number("prefetch_timeout", self.prefetch_timeout, least=0)
        if self.shard_from is not None:
            validate.integer("shard_from", self.shard_from)


@dataclass(frozen=True, kw_only=True)
class ManagerSettings(ManagerOptions):
    """All that a `SeedManager` is made with beside the host and the optimizer, checked.

    Attributes:
        schedulers: learning-rate schedulers to keep consistent with the groups that seeds add.
        sinks: functions that are called with every `fxgraft.telemetry.Event`.
        gates: action (``"blend"``, ``"fossilize"``) -> the gate that a seed has to pass.
        ddp: the ``DistributedDataParallel`` around a module that contains several hosts, or None.

    Raises:
        TypeError, ValueError: something is invalid.
    """

    schedulers: Sequence[Any]
    sinks: Sequence[Sink]
    gates: Mapping[str, Gate]
    ddp: nn.Module | None

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.boolean("strict", self.strict)
        if self.helper not in HELPERS:
            raise ValueError(f"helper: expected one of {', '.join(HELPERS)}; got {self.helper!r}")
        _check_gates(self.gates)
        checked = {
            "enabled": _is_enabled(self.enabled),
            "schedulers": schedulers_of(self.schedulers),
            "sinks": _several("sinks", "a sequence of callables that take an event", self.sinks, callable),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def host_of(given: nn.Module) -> Host:
    """The host, also where a wrapper for several ranks is around it. Raises `TypeError`."""
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
    held = getattr(given, "__dict__", {})
    return held.get("_modules", {}).get("_forward_module", given)  # type: ignore[no-any-return]


def optimizers_of(given: Optimizer | Sequence[Optimizer] | None, host: Host) -> tuple[Optimizer, ...]:
    """All optimizers, without the wrappers of Accelerate and Fabric. Raises `TypeError`.

    Warns where they train nothing of the host's.
    """
    if given is None:
        return ()
    several = (given,) if isinstance(given, Optimizer) else given
    wanted = "a torch.optim.Optimizer, a sequence of them, or None"
    given_all = _several("optimizer", wanted, several, lambda one: isinstance(one, Optimizer))
    optimizers = tuple(map(inner, given_all))
    if optimizers and not any(engine.owns(host, parameter) for parameter in _parameters_of(optimizers)):
        logger.warning("the optimizer has no parameter of the host's: is it the one of another model?")
    return optimizers


def _parameters_of(optimizers: Sequence[Optimizer]) -> Iterator[nn.Parameter]:
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


def _check_gates(given: Mapping[str, Gate]) -> None:
    """Raise `TypeError`, and `ValueError` for an action that has no gate."""
    _require("gates", f"a mapping from {' or '.join(_GATED)} to a gate", isinstance(given, Mapping), given)
    for action, gate in given.items():
        if action not in _GATED:
            raise ValueError(f"gates: expected {' or '.join(map(repr, _GATED))}; got {action!r}")
        _require(f"gates[{action!r}]", "a gate", callable(gate), gate)


def _is_enabled(given: bool | None) -> bool:
    """As given, or else as the environment has it."""
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
