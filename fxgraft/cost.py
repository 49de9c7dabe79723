"""What fxgraft costs on a model: its training step bare and in a host, interleaved, and what changes cost.

The bare model takes part twice: the ratio of the two is what the other ratios are uncertain by.
"""

from __future__ import annotations

import copy
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from fxgraft.errors import BlueprintError, SlotError
from fxgraft.host.compile_report import compile_report
from fxgraft.host.host import Host
from fxgraft.host.tracing import trace
from fxgraft.manager.manager import SeedManager
from fxgraft.util import validate
from fxgraft.util.interleaved_timing import Contender, Timed, compare, repeat, time_interleaved

_T = TypeVar("_T")

BARE, AGAIN = "bare model", "bare model, again"
EMPTY, TRAINING, BLENDING = "host without seeds", "host, a seed in training", "host, a seed blending"
RAMP = 10**9
"""Steps: so long that alpha never arrives."""

WARM_UP = 3
"""Untimed steps of each side before all."""


@dataclass(frozen=True)
class CostReport:
    """The result of a `Measurement`. Times are in milliseconds unless noted.

    Attributes:
        slot, blueprint, parameters: of the seed that was grown.
        steps: the time of a training step, the bare model first; see `fxgraft.util.interleaved_timing.Timed`.
        trace_ms, germinate_ms, cull_ms: once each, uncompiled.
        first_step_s: seconds of the first training step of the bare model and of the host, and of a
            germination with the step after it: with what they compile. Empty where nothing was compiled.
        recompiles: graphs that were compiled while alpha moved.
        environment: versions, threads and cores.
    """

    slot: str
    blueprint: str
    parameters: int
    steps: tuple[Timed, ...]
    trace_ms: float
    germinate_ms: float
    cull_ms: float
    first_step_s: dict[str, float]
    recompiles: int
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """What to measure: the cost of growing one seed. Copies of the model are trained, not the model.

    Attributes:
        model, args, kwargs: the model and the arguments of one call.
        slot: the name of the slot; None: the one nearest to the model's middle at which the blueprint fits.
        blueprint, config: of the seed.
        rounds: how many rounds are timed; in each the bare model, the host and the grown host run in turn.
        steps: training steps of each of them in a round.
        backend: the ``torch.compile`` backend for all of them (``"inductor"``); None: eager mode.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    slot: str | None = None
    blueprint: str = "mlp"
    config: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 15
    steps: int = 4
    backend: str | None = None

    def run(self) -> CostReport:
        """Run the measurement. No compiler process is used: a germination waits until its code is compiled.

        Raises:
            TraceError, SlotError, BlueprintError: as `fxgraft.trace` and `SeedManager.germinate`.
            ValueError: a number is below 1, the backend is unknown, the blueprint fits no slot, or the model
                has no output to train by.
        """
        for name in ("rounds", "steps"):
            validate.integer(name, getattr(self, name), 1)
        if self.backend is not None and self.backend not in torch.compiler.list_backends(()):
            known = ", ".join(torch.compiler.list_backends())
            raise ValueError(
                f"backend: expected one that torch.compile knows ({known}); got {self.backend!r}"
            )
        trace_ms, host = _timed(self._host)
        manager = SeedManager(host)
        slot = self.slot or self._middle(manager)
        germinate_ms, _ = _timed(partial(self._germinate, manager, slot))
        parameters = sum(parameter.numel() for parameter in manager.seed_parameters())
        cull_ms, _ = _timed(partial(manager.cull, "seed"))
        sides = {BARE: self._bare(), AGAIN: self._bare()}
        first = {BARE: _timed(sides[BARE].step)[0] / 1e3}
        hosts = [self._host() for _ in (EMPTY, TRAINING, BLENDING)]
        for name, host in zip((EMPTY, TRAINING, BLENDING), hosts, strict=True):
            sides[name] = self._in_host(name, host, slot, first)
        for side in sides.values():
            repeat(side.step, WARM_UP)
        graphs = self._graphs(hosts)
        steps = {name: side.step for name, side in sides.items()}
        timed = compare(time_interleaved(steps, self.rounds, self.steps, random.Random(0).shuffle))
        return CostReport(
            slot,
            self.blueprint,
            parameters,
            timed,
            trace_ms,
            germinate_ms,
            cull_ms,
            first if self.backend is not None else {},
            self._graphs(hosts) - graphs,
            _environment(),
        )

    def _in_host(self, name: str, host: Host, slot: str, first: dict[str, float]) -> Contender:
        """The side of that name, after its first steps; the seconds that these took go into ``first``."""
        side = Contender(host, self.args, self.kwargs)
        manager = SeedManager(host, side.optimizer, check_every=0)
        if self.backend is not None:
            host.compile(backend=self.backend)
        side.after = manager.step
        first.setdefault("host", _timed(side.step)[0] / 1e3)
        if name != EMPTY:
            germinated, _ = _timed(partial(self._germinate, manager, slot))
            first["germination, and a step"] = (germinated + _timed(side.step)[0]) / 1e3
        if name == BLENDING:
            manager.blend("seed", steps=RAMP, schedule="linear")
        return side

    def _host(self) -> Host:
        return trace(copy.deepcopy(self.model), self.args, dict(self.kwargs))

    def _bare(self) -> Contender:
        model = copy.deepcopy(self.model)
        run = None if self.backend is None else torch.compile(model, backend=self.backend)
        return Contender(model, self.args, self.kwargs, run)

    def _germinate(self, manager: SeedManager, slot: str) -> None:
        manager.germinate(slot, self.blueprint, name="seed", **self.config)

    def _middle(self, manager: SeedManager) -> str:
        """The slot nearest to the middle that takes the blueprint."""
        names = list(manager.host.slots)
        for name in sorted(names, key=lambda name: abs(names.index(name) - len(names) // 2)):
            try:
                manager.plan(name, self.blueprint, **self.config)
            except (SlotError, BlueprintError):
                continue
            return name
        raise ValueError(f"blueprint: none of {len(names)} slots takes {self.blueprint!r}; name another one")

    def _graphs(self, hosts: Sequence[Host]) -> int:
        return sum(compile_report(host).graphs for host in hosts) if self.backend is not None else 0


def _timed(do: Callable[[], _T]) -> tuple[float, _T]:
    """Milliseconds, and what it returned."""
    began = time.perf_counter()
    done = do()
    return (time.perf_counter() - began) * 1e3, done


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
