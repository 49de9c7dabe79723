"""A seed's record in a manifest, and a seed from a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft import schedules
from fxgraft.checkpoint.file import DAMAGED
from fxgraft.errors import CheckpointError, SlotError
from fxgraft.lifecycle import building
from fxgraft.lifecycle.building import BlueprintLike
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.lifecycle.swap import follow_stages
from fxgraft.resizing import new_blocks
from fxgraft.schedules import SCHEDULES, Ramp
from fxgraft.seeds import streams
from fxgraft.seeds.config import SeedOrigin
from fxgraft.seeds.seed import Seed, amend
from fxgraft.seeds.stage import Stage
from fxgraft.util import validate
from fxgraft.util.reading import InvalidDataError, read
from fxgraft_passes import Call, GraftSpec
from fxgraft_passes.graft import check_name

_SAVED_STAGES = (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
_COUNT = {"minimum": 0}
_SHARE = {"minimum": 0, "maximum": 1}


@dataclass(frozen=True)
class RampRecord:
    """A blend, and how far it is."""

    starts: list[float]
    target: float = field(metadata=_SHARE)
    steps: int = field(metadata=_COUNT)
    warmup: int = field(metadata=_COUNT)
    schedule: str
    step: int = field(metadata=_COUNT)

    def __post_init__(self) -> None:
        for start in self.starts:
            validate.number("starts", start, 0, 1)

    def ramp(self) -> Ramp:
        """The ramp itself."""
        schedule = schedules.resolve(self.schedule)
        return Ramp(tuple(map(float, self.starts)), self.target, self.steps, schedule, self.warmup)


@dataclass(frozen=True)
class SeedCounters:
    """What a seed has behind it. A measured loss may be infinite, or NaN."""

    paused: bool
    steps: int = field(metadata=_COUNT)
    trained_steps: int = field(metadata=_COUNT)
    loss_with: float | None
    loss_without: float | None

    @classmethod
    def of(cls, seed: Seed) -> SeedCounters:
        """That of a seed now."""
        return cls(**{f.name: getattr(seed, f.name) for f in fields(cls)})


def _fits(made: Tensor, saved: Tensor | None, grows: bool) -> bool:
    if saved is None or not grows or saved.dim() != made.dim():
        return saved is not None and saved.shape == made.shape
    return all(size <= wider for size, wider in zip(made.shape, saved.shape, strict=True))


@dataclass(frozen=True, kw_only=True)
class SeedRecord(SeedOrigin):
    """What a manifest says of a seed. Its weights are among the host's tensors."""

    name: str = field()  # without the default
    blueprint: str
    config: dict[str, Any]
    registered: bool
    spec: dict[str, Any]
    stage: str
    alpha: float = field(metadata=_SHARE)
    alphas: list[float]
    ramp: RampRecord | None
    plain: SeedCounters
    hyper: dict[str, Any] | None = None
    places: dict[str, tuple[int, int]] | None = None
    frozen: list[str] | None = None  # parameters that do not require gradients; None: as they are built

    @classmethod
    def of(cls, seed: Seed) -> SeedRecord:
        """The record of a live or fossilized seed."""
        hyper = seed.hyper
        return cls(
            name=seed.name,
            slot=seed.slot,
            source=seed.source,
            blueprint=seed.blueprint,
            config=dict(seed.config),
            registered=seed.registered,
            spec=dataclasses.asdict(seed.spec),
            stage=seed.stage.name,
            alpha=seed.alpha,
            alphas=list(seed.alphas),
            ramp=_ramp_record(seed),
            plain=SeedCounters.of(seed),
            hyper=None if hyper is None else dict(hyper),
            places=None if seed.places is None else dict(seed.places),
            frozen=_frozen(seed.module),
        )

    @classmethod
    def read(cls, data: Any) -> SeedRecord:
        """What is in a manifest, checked. Raises `CheckpointError`."""
        name = data.get("name") if isinstance(data, Mapping) else None
        try:
            return read(data, cls, f"seed {name!r}")
        except InvalidDataError as error:
            raise CheckpointError(str(error)) from error

    def __post_init__(self) -> None:
        check_name(self.name)
        validate.boolean("isolated", self.spec["isolated"])
        if Stage[self.stage] not in _SAVED_STAGES or self.spec["fossil"] is not None:
            raise CheckpointError(f"seed {self.name!r}: cannot be {self.stage} in a file. {DAMAGED}")
        for alpha in self.alphas:
            validate.number("alphas", alpha, 0, 1)
        for name, place in (self.places or {}).items():
            for number in place:
                validate.integer(f"the group of {name}", number)
        if self.ramp is not None:
            self.ramp.ramp()
            if len(self.ramp.starts) != len(self.alphas):
                raise CheckpointError(
                    f"seed {self.name!r}: its ramp has {len(self.ramp.starts)} starts; expected "
                    f"{len(self.alphas)}, one for each alpha. {DAMAGED}"
                )
        elif Stage[self.stage] is Stage.BLENDING:
            raise CheckpointError(f"seed {self.name!r} blends, but has no ramp. {DAMAGED}")

    def check_size(
        self,
        lifecycle: Lifecycle,
        blueprints: Mapping[str, BlueprintLike],
        weights: Mapping[str, Tensor],
        grows: bool = False,
    ) -> None:
        """Build the module without memory and compare its shapes with those of the saved weights.

        So a file cannot make its reader allocate more than the file holds. A factory that cannot
        build without memory (one that reads its own weights' values) is not checked. ``grows``: channels grow
        after it, which may be its own: what is saved may be larger.
        """
        if self.spec.get("call") is not None:
            return  # a copy of a block of the host
        source = self._source(blueprints)
        if isinstance(source, nn.Module):
            return
        slot = lifecycle.host.site(self.slot, self.source)
        try:
            with torch.device("meta"), streams.private_stream(0):
                module: Any = building.call_blueprint(source, slot, self.spec["mode"], self.config)
        except Exception:
            return  # what is wrong with it is said when it is built
        if not isinstance(module, nn.Module):
            return
        prefix = f"_seeds.{self.name}.module." + ("branch." if self.spec["mode"] == "gated" else "")
        for name, tensor in module.state_dict().items():
            saved = weights.get(prefix + name)
            if isinstance(tensor, Tensor) and not _fits(tensor, saved, grows):
                raise CheckpointError(
                    f"seed {self.name!r}: its blueprint makes {name} of shape {tuple(tensor.shape)}, and "
                    f"the checkpoint holds {'none' if saved is None else tuple(saved.shape)}. Register the "
                    f"blueprint as it was in the saved run, or give load(..., blueprints=...) one that fits"
                )

    def restore_seed(
        self, lifecycle: Lifecycle, run_seed: int, blueprints: Mapping[str, BlueprintLike]
    ) -> Seed:
        """Grow the seed again and bring it, through the same transitions, to its stage."""
        if self.name in lifecycle.seeds:
            raise CheckpointError(f"there are two seeds {self.name!r}")
        slot = lifecycle.host.site(self.slot, self.source)
        copy_source = slot.input.copy and slot.source is not None
        call = None if self.spec.get("call") is None else Call(**self.spec["call"])
        spec = GraftSpec(**{**self.spec, "copy": slot.copy, "copy_source": copy_source, "call": call})
        seed = Seed(
            self.name, self.slot, self.blueprint, spec, Stage.GERMINATED, config=self.config,
            registered=self.registered, hyper=self.hyper, source=self.source, places=self.places,
        )  # fmt: skip
        key = streams.key_of(run_seed, self.name)
        if call is not None:
            grown = new_blocks.again(lifecycle.host, slot, key, self.config)
        else:
            around = building.surroundings(lifecycle.host, slot)
            grown = building.build(self._source(blueprints), slot, spec.mode, around, key, self.config)
        lifecycle.go_live(seed, slot, grown)
        self._freeze(grown)  # not before: what was frozen later is in an optimizer all the same
        stage = Stage[self.stage]
        seed.set_alpha(*self.alphas)
        amend(seed, alpha=self.alpha)
        if stage is Stage.FOSSILIZED:
            seed.enter(Stage.HOLDING)
            lifecycle.fossilize(seed)
        else:
            seed.enter(stage)
            follow_stages(lifecycle.host, lifecycle.seeds.values())
        if self.ramp is not None:
            seed.begin(self.ramp.ramp(), self.ramp.step)
        amend(seed, **dataclasses.asdict(self.plain))
        if seed.is_live:
            lifecycle.gradients.pause(seed.name, seed.paused)
        return seed

    def _freeze(self, module: nn.Module) -> None:
        """Set ``requires_grad`` of each parameter as in the saved run."""
        if self.frozen is not None:
            for name, parameter in module.named_parameters():
                if parameter.requires_grad == (name in self.frozen):
                    parameter.requires_grad_(name not in self.frozen)

    def check_source(self, lifecycle: Lifecycle, blueprints: Mapping[str, BlueprintLike]) -> None:
        """Raise `CheckpointError` where the code that it was germinated from is not there, or fails."""
        if self.spec.get("call") is not None:
            return  # a copy of a block of the host
        source = self._source(blueprints)
        if isinstance(source, nn.Module) or (self.registered and self.name not in blueprints):
            return
        try:
            slot = lifecycle.host.site(self.slot, self.source)
        except SlotError:
            return  # in what is not there yet
        try:
            with streams.private_stream(0):
                building.call_blueprint(source, slot, self.spec["mode"], self.config)
        except Exception as error:  # of a user's function
            raise CheckpointError(
                f"seed {self.name!r}: its blueprint does not build it: {type(error).__name__}: {error}. "
                f"Expected what it was germinated from"
            ) from error

    def _source(self, blueprints: Mapping[str, BlueprintLike]) -> BlueprintLike:
        for name in (self.name, self.blueprint):
            if name in blueprints:
                return blueprints[name]
        if self.registered:
            return self.blueprint
        raise CheckpointError(
            f"seed {self.name!r} was germinated from code ({self.blueprint}), which a checkpoint does "
            f"not hold; pass load(..., blueprints={{{self.name!r}: <module or factory>}}), or let "
            f"host.seed_blueprints have it"
        )


def _frozen(module: nn.Module | None) -> list[str] | None:
    if module is None:
        return None
    return [name for name, parameter in module.named_parameters() if not parameter.requires_grad]


def stream_seed(given: Any) -> int:
    """The number that the random streams of seeds are keyed by: 64 bits. Raises `ValueError`."""
    if validate.integer("run_seed", given) >= 2**64:
        raise ValueError(f"run_seed: expected at most 64 bits; got {given}")
    return int(given)


def _ramp_record(seed: Seed) -> RampRecord | None:
    if seed.ramp is None:
        return None
    name = next((name for name, known in SCHEDULES.items() if known is seed.ramp.schedule), None)
    if name is None and seed.stage is Stage.BLENDING:
        raise CheckpointError(
            f"seed {seed.name!r} blends by a schedule that has no name; give it one with "
            f"fxgraft.schedules.register before blend(), and in the process that loads"
        )
    return RampRecord(
        starts=list(seed.ramp.starts),
        target=seed.ramp.target,
        steps=seed.ramp.steps,
        warmup=seed.ramp.warmup,
        schedule=name or "linear",  # a ramp that has ended does not ask it again
        step=seed.ramp_step,
    )
