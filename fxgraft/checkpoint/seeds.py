"""A seed's record in a manifest, and a seed from a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fxgraft import nursery, schedules, streams
from fxgraft.errors import CheckpointError
from fxgraft.lifecycle import Lifecycle
from fxgraft.nursery import BlueprintLike
from fxgraft.schedules import SCHEDULES, Ramp
from fxgraft.seed import Seed
from fxgraft.stage import Stage
from fxgraft.swap import follow_stages
from fxgraft_passes import GraftSpec

_PLAIN = ("paused", "trained_steps", "loss_with", "loss_without")


@dataclass(frozen=True)
class SeedRecord:
    """What a manifest says of a seed. Its weights are among the host's tensors."""

    name: str
    slot: str
    blueprint: str
    registered: bool
    config: dict[str, Any]
    spec: dict[str, Any]
    stage: str
    alphas: list[float]
    ramp: dict[str, Any] | None
    plain: dict[str, Any]

    @classmethod
    def of(cls, seed: Seed) -> SeedRecord:
        """The record of a live or fossilized seed."""
        return cls(
            seed.name,
            seed.slot,
            seed.blueprint,
            seed.registered,
            dict(seed.config),
            dataclasses.asdict(seed.spec),
            seed.stage.name,
            list(seed.alphas),
            _ramp_record(seed),
            {name: getattr(seed, name) for name in _PLAIN},
        )

    def revive(self, lifecycle: Lifecycle, run_seed: int, blueprints: Mapping[str, BlueprintLike]) -> Seed:
        """Grow the seed again and bring it, through the same transitions, to its stage."""
        spec = GraftSpec(**self.spec)
        seed = Seed(
            self.name, self.slot, self.blueprint, spec, Stage.GERMINATED, config=self.config,
            registered=self.registered,
        )  # fmt: skip
        slot = lifecycle.host.slot(self.slot)
        around = nursery.surroundings(lifecycle.host, slot)
        key = streams.key_of(run_seed, self.name)
        grown = nursery.grow(self._source(blueprints), slot, spec.mode, around, key, self.config)
        lifecycle.go_live(seed, slot, grown)
        stage = Stage[self.stage]
        seed.set_alpha(*self.alphas)
        if stage is Stage.FOSSILIZED:
            seed.enter(Stage.HOLDING)
            lifecycle.fossilize(seed)
        else:
            seed.enter(stage)
            self._resume_ramp(seed)
            follow_stages(lifecycle.host, lifecycle.seeds.values())
        for name, value in self.plain.items():
            setattr(seed, name, value)
        lifecycle.gradients.pause(seed.name, seed.paused)
        return seed

    def _source(self, blueprints: Mapping[str, BlueprintLike]) -> BlueprintLike:
        for name in (self.name, self.blueprint):
            if name in blueprints:
                return blueprints[name]
        if self.registered:
            return self.blueprint
        raise CheckpointError(
            f"seed {self.name!r} was germinated from code ({self.blueprint}), which a checkpoint does "
            f"not hold; pass load(..., blueprints={{{self.name!r}: <module or factory>}})"
        )

    def _resume_ramp(self, seed: Seed) -> None:
        if self.ramp is not None:
            starts, step = tuple(self.ramp["starts"]), self.ramp["step"]
            schedule = schedules.resolve(self.ramp["schedule"])
            seed.begin(Ramp(starts, self.ramp["target"], self.ramp["steps"], schedule), step)


def _ramp_record(seed: Seed) -> dict[str, Any] | None:
    if seed.ramp is None or seed.stage is Stage.FOSSILIZED:
        return None
    name = next((name for name, known in SCHEDULES.items() if known is seed.ramp.schedule), None)
    if name is None and seed.stage is Stage.BLENDING:
        raise CheckpointError(
            f"seed {seed.name!r} blends by a schedule that has no name; give it one with "
            f"fxgraft.schedules.register before blend(), and in the process that loads"
        )
    return {
        "starts": list(seed.ramp.starts),
        "target": seed.ramp.target,
        "steps": seed.ramp.steps,
        "schedule": name or "linear",  # a ramp that has ended does not ask it again
        "step": seed.ramp_step,
    }
