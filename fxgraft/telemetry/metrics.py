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
    """The description of a metric.

    Attributes:
        alias: its name in WP-101, the document that specified the first version of this library. The values
            are given under both names.
        unit: the unit of its values.
        meaning: what it is, in words.
        per_seed: whether there is one value for each seed, or one for the whole host.
    """

    alias: str
    unit: str
    meaning: str
    per_seed: bool = True


_TABLE = (
    # name, name in WP-101, unit, meaning
    ("seed/stage", "seed.stage", "index", "place of the stage in fxgraft.Stage, 0 = DORMANT"),
    ("seed/alpha", "seed.alpha", "share", "share of the seed in the slot's output, 0 to 1"),
    ("seed/alpha_steps", "seed.alpha_steps", "steps", "steps done of the current ramp"),
    ("seed/attached", "seed.kernel_attached", "bool", "1 while the module is in the graph"),
    ("seed/runs", "seed.runs", "count", "calls in which it ran since it was germinated"),
    ("seed/trained_steps", "seed.trained_steps", "steps", "training steps in which it ran and was updated"),
    ("seed/latency_ms", "seed.kernel_latency_ms", "ms", "from germinate() to live"),
    ("seed/violations", "seed.isolation_violations", "count", "violations found while it was live"),
    ("seed/host_gradient_norm", "seed.isolation.host_norm", "norm", "2-norm of the host's gradients"),
    ("seed/gradient_norm", "seed.isolation.seed_norm", "norm", "2-norm of the seed's gradients"),
    ("seed/contribution", "seed.contribution", "loss", "measured loss without the seed minus with it"),
    ("seeds/active", "seeds.active", "count", "seeds that are live"),
    ("isolation/violations", "isolation.violations", "count", "violations found in all"),
    ("rollback/latency_ms", "rollback.latency_ms", "ms", "the last cull_all()"),
    ("prefetch/pending", "prefetch.pending", "count", "germinations in preparation"),
    ("prefetch/completed", "prefetch.completed", "count", "prepared and live"),
    ("prefetch/failed", "prefetch.failed", "count", "failed, timed out or cancelled"),
    ("prefetch/latency_ms", "prefetch.latency_ms", "ms", "preparation of the last one"),
)

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        f"fxgraft/{name}": Metric(f"kasmina.{alias}", unit, meaning, per_seed=name.startswith("seed/"))
        for name, alias, unit, meaning in _TABLE
    }
)

ALIASES = frozenset(metric.alias for metric in METRICS.values())
"""The names that WP-101 gives them."""


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
    """Metric -> seed -> value, under the metric's name and its alias; unknown values are left out.

    The seed is ``""`` for a metric of the whole host.

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
            "attached": float(seed.module is not None),
            "runs": seed.runs,
            "trained_steps": seed.trained_steps,
            "latency_ms": seed.latency_ms,
            "violations": counters.violations_of.get(seed.name, 0),
            "host_gradient_norm": host_norm,
            "gradient_norm": norm_of(registry.parameters(seed.name)) if seed.is_live else None,
            "contribution": seed.contribution,
        }
        for name, value in values.items():
            found[f"fxgraft/seed/{name}"][seed.name] = value
    whole = {
        "seeds/active": sum(seed.is_live for seed in seeds),
        "isolation/violations": counters.violations,
        "rollback/latency_ms": counters.rollback_ms,
        "prefetch/pending": pending,
        "prefetch/completed": counters.prefetch_completed,
        "prefetch/failed": counters.prefetch_failed,
        "prefetch/latency_ms": counters.prefetch_ms,
    }
    for name, value in whole.items():
        found[f"fxgraft/{name}"][""] = value
    known = {
        metric: {seed: float(value) for seed, value in values.items() if value is not None}
        for metric, values in found.items()
    }
    return known | {METRICS[metric].alias: dict(values) for metric, values in known.items()}
