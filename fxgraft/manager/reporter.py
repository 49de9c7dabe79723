"""Turns what happens into events and counts, for the sinks and the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from fxgraft.commands import Reply
from fxgraft.gates import Verdict
from fxgraft.lifecycle.inactivity import InactiveSeed, together
from fxgraft.lifecycle.isolation_check import Violation
from fxgraft.seeds.seed import Seed, amend
from fxgraft.seeds.stage import Stage
from fxgraft.telemetry.events import Event, Sink, Sinks, logger
from fxgraft.telemetry.metrics import Counters
from fxgraft.util.text import listed

_OPERATIONS = {Stage.GERMINATED: "germinate", Stage.FOSSILIZED: "fossilize", Stage.CULLED: "cull"}
"""Stages that only an operation leads to. (TRAINING is reached by a prefetch as well.)"""


class Reporter:
    """Sends events and keeps the counters.

    Attributes:
        step: training steps so far.
        silent: whether sinks receive nothing: what is restored from a file happened earlier.
        counters: what metrics are made of beside the seeds.
    """

    def __init__(self, sinks: Sequence[Sink], run_summary: Callable[[], dict[str, Any]]):
        self._sinks = Sinks(sinks)
        self._run_summary: Callable[[], dict[str, Any]] | None = run_summary if sinks else None
        self.step = self._began = 0
        self.silent = False
        self.counters = Counters()

    def continue_at(self, step: int) -> None:
        """The run begins behind that step of an earlier one."""
        self.step = self._began = step

    def emit(self, kind: str, seed: str | None = None, /, **data: Any) -> None:
        """Send an event to every sink. The first is led by the event ``run_began``."""
        if self.silent:
            return
        if self._run_summary is not None:
            run_summary, self._run_summary = self._run_summary, None
            self._sinks.emit(Event("run_began", self._began, None, run_summary()))
        self._sinks.emit(Event(kind, self.step, seed, data))

    def stage(self, seed: Seed) -> None:
        """A seed has entered its stage."""
        self.emit("seed_stage", seed.name, **seed.to_dict())
        if seed.stage in _OPERATIONS:
            self.operation(_OPERATIONS[seed.stage], seed)

    def operation(self, operation: str, seed: Seed, **data: Any) -> None:
        """Something was done to a seed (or would have been, were seeds not disabled)."""
        self.emit("seed_operation", seed.name, operation=operation, **data)

    def warn_if_frozen(self, what: str, like: str, parameters: Iterable[nn.Parameter | None]) -> None:
        """Warn where what grew cannot learn: all ``parameters`` of it are frozen."""
        found = [parameter for parameter in parameters if parameter is not None]
        if not found or any(parameter.requires_grad for parameter in found):
            return
        logger.warning(
            "%s cannot learn: all parameters in it are frozen, as those of %s are. Expected some that train: "
            "requires_grad_(True) on them and an optimizer that has them, before they grow; freeze them "
            "again afterwards",
            what,
            like,
        )

    def warn_if_untrained(self, block: str, module: nn.Module, optimizers: Sequence[Any]) -> None:
        """Warn where a block has parameters in no optimizer, which tell nothing of their copies' place."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        trained = {id(p) for group in groups for p in group["params"]}
        left_out = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in trained]
        if trained and left_out:
            logger.warning(
                "block %r has parameters that require gradients and are in no optimizer (%s); those of its "
                "copy are trained as their neighbours are. Expected them in an optimizer, or "
                "requires_grad_(False)",
                block,
                listed(left_out, ", "),
            )

    def blend(self, seed: Seed, target: float, steps: int, schedule: str) -> None:
        """A ramp begins."""
        self.operation("blend", seed)
        self.emit("blend_config", seed.name, target=target, steps=steps, schedule=schedule)

    def gate(self, seed: Seed, action: str, verdict: Verdict) -> None:
        """A gate has judged."""
        self.emit("gate_event", seed.name, action=action, passed=verdict.passed, reason=verdict.reason)

    def gradients_dropped(self, seed: str) -> None:
        """A seed's gradients were not finite in this step."""
        self.emit("gradients_dropped", seed)

    def inactive_seeds(self, silent: Sequence[InactiveSeed]) -> None:
        """Seeds do not run, or nothing trains them."""
        for reason, seeds in together(silent).items():
            who = ", ".join(f"seed {seed.name!r} at slot {seed.slot!r}" for seed in seeds)
            logger.warning("%s: %s", who, reason)
        for seed, reason in silent:
            self.emit("seed_stalled", seed.name, reason=reason)

    def stray_copies(self, found: Iterable[tuple[str, list[str]]]) -> None:
        """Copies of the host that are averages by all signs, and lack seeds: where made, and which seeds."""
        for place, seeds in found:
            logger.warning(
                "a copy of the host, made at %s, is updated and differs in the seeds %s: an average of "
                "weights does not have what grew since it was made. fxgraft.averaging.follow(host, copy) "
                "gives it that, and lets it follow from now on",
                place,
                ", ".join(seeds),
            )

    def command(self, command: Mapping[str, Any] | None, reply: Reply) -> None:
        """A command was carried out or refused; None: one that could not be read."""
        self.emit("command", reply.seed, command=command, accepted=reply.accepted, reason=reply.reason)

    def violations(self, found: Sequence[Violation], live: Sequence[Seed]) -> None:
        """The isolation check found something while these seeds were live."""
        counters = self.counters
        counters.violations += len(found)
        for seed in live:
            counters.violations_of[seed.name] = counters.violations_of.get(seed.name, 0) + len(found)
        for violation in found:
            self.emit(
                "violation_recorded", what=violation.kind, name=violation.name, magnitude=violation.magnitude
            )

    def live_after(self, milliseconds: float, seed: Seed, prefetched: bool) -> None:
        """A seed went live that long after it was asked for."""
        amend(seed, latency_ms=milliseconds)
        if not prefetched:
            self.operation("germinate", seed)
        else:
            self.counters.prefetch_ms = milliseconds
            self.counters.prefetch_completed += 1

    def prefetch_failed(self, seed: Seed, reason: str) -> None:
        """A preparation came to nothing."""
        self.counters.prefetch_failed += 1
        self.emit("prefetch_failed", seed.name, reason=reason)

    def rollback(self, seeds: Sequence[Seed], milliseconds: float) -> None:
        """All seeds were culled at once."""
        self.counters.rollback_ms = milliseconds
        self.emit("rollback", seeds=[seed.name for seed in seeds], latency_ms=milliseconds)
