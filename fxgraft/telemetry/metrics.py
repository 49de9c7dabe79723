"""The metrics: one table of names, units and meanings, and the values of a moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fxgraft.host.host import Host
from fxgraft.optimizers.gradients import norm_of
from fxgraft.optimizers.registry import SeedParameterRegistry
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage


@dataclass(frozen=True)
class Metric:
    """A metric's unit and meaning. ``per_seed``: one value for each seed, else one in all."""

    unit: str
    meaning: str
    per_seed: bool = True


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "kasmina.seed.stage": Metric("index", "place of the stage in fxgraft.Stage, 0 = DORMANT"),
        "kasmina.seed.alpha": Metric("share", "share of the seed in the slot's output, 0 to 1"),
        "kasmina.seed.alpha_steps": Metric("steps", "steps done of the current ramp"),
        "kasmina.seed.kernel_attached": Metric("bool", "1 while the module is in the graph"),
        "kasmina.seed.runs": Metric("count", "calls in which it ran since it was germinated"),
        "kasmina.seed.trained_steps": Metric("steps", "training steps in which it ran and was updated"),
        "kasmina.seed.kernel_latency_ms": Metric("ms", "from germinate() to live"),
        "kasmina.seed.isolation_violations": Metric("count", "violations found while it was live"),
        "kasmina.seed.isolation.host_norm": Metric("norm", "2-norm of the host's gradients"),
        "kasmina.seed.isolation.seed_norm": Metric("norm", "2-norm of the seed's gradients"),
        "kasmina.seed.contribution": Metric("loss", "measured loss without the seed minus with it"),
        "kasmina.seeds.active": Metric("count", "seeds that are live", per_seed=False),
        "kasmina.isolation.violations": Metric("count", "violations found in all", per_seed=False),
        "kasmina.rollback.latency_ms": Metric("ms", "the last cull_all()", per_seed=False),
        "kasmina.prefetch.pending": Metric("count", "germinations in preparation", per_seed=False),
        "kasmina.prefetch.completed": Metric("count", "prepared and live", per_seed=False),
        "kasmina.prefetch.failed": Metric("count", "failed, timed out or cancelled", per_seed=False),
        "kasmina.prefetch.latency_ms": Metric("ms", "preparation of the last one", per_seed=False),
    }
)


@dataclass
class Counters:
    """What only a manager can count."""

    violations: int = 0
    violations_of: dict[str, int] = field(default_factory=dict)
    rollback_ms: float | None = None
    prefetch_completed: int = 0
    prefetch_failed: int = 0
    prefetch_ms: float | None = None


def collect(
    host: Host,
    seeds: Iterable[Seed],
    registry: SeedParameterRegistry,
    counters: Counters,
    pending: int,
) -> dict[str, dict[str, float]]:
    """Metric -> seed -> value (the seed is ``""`` for a metric of the whole); unknown ones left out.

    Reads the gradients of the step that was just made: one norm over the host's, one over each seed's.
    """
    seeds = list(seeds)
    found: dict[str, dict[str, float | None]] = {name: {} for name in METRICS}
    host_norm = norm_of(host.host_parameters()) if any(s.is_live for s in seeds) else None
    for seed in seeds:
        values = {
            "stage": list(Stage).index(seed.stage),
            "alpha": seed.alpha,
            "alpha_steps": seed.ramp_step,
            "kernel_attached": float(seed.module is not None),
            "runs": seed.runs,
            "trained_steps": seed.trained_steps,
            "kernel_latency_ms": seed.latency_ms,
            "isolation_violations": counters.violations_of.get(seed.name, 0),
            "isolation.host_norm": host_norm,
            "isolation.seed_norm": norm_of(registry.parameters(seed.name)) if seed.is_live else None,
            "contribution": seed.contribution,
        }
        for name, value in values.items():
            found[f"kasmina.seed.{name}"][seed.name] = value
    whole = {
        "seeds.active": sum(seed.is_live for seed in seeds),
        "isolation.violations": counters.violations,
        "rollback.latency_ms": counters.rollback_ms,
        "prefetch.pending": pending,
        "prefetch.completed": counters.prefetch_completed,
        "prefetch.failed": counters.prefetch_failed,
        "prefetch.latency_ms": counters.prefetch_ms,
    }
    for name, value in whole.items():
        found[f"kasmina.{name}"][""] = value
    return {
        metric: {seed: float(value) for seed, value in values.items() if value is not None}
        for metric, values in found.items()
    }
