"""A seed: the record of one grafted module. Only the manager changes it, by `amend`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from fxgraft.schedules import Ramp
from fxgraft.seeds.stage import Stage
from fxgraft_passes import Graft, GraftSpec

_AT_GERMINATION = "it is decided when it is germinated: cull it and germinate another"
_BY_MEASURING = "manager.measure(seed, evaluate) measures it"
_INSTEAD = {
    "alpha": "manager.blend(seed, to=..., steps=...) moves it, manager.at_alpha(seed, ...) for a moment only",
    "stage": "germinate, blend, cull and fossilize of the manager change it",
    "paused": "manager.pause(seed) and manager.resume(seed) change it",
    **dict.fromkeys(
        ("ramp", "ramp_step", "target", "progress"), "manager.blend(seed, ...) begins another ramp"
    ),
    **dict.fromkeys(("loss_with", "loss_without", "contribution"), _BY_MEASURING),
    **dict.fromkeys(("name", "slot", "source", "blueprint", "spec", "config"), _AT_GERMINATION),
    **dict.fromkeys(("hyper", "optimizer", "groups", "places"), _AT_GERMINATION),
    **dict.fromkeys(("registered", "module"), _AT_GERMINATION),
}
"""The remedy in the error for an assignment to an attribute; all other attributes belong to the manager."""


@dataclass(eq=False)
class Seed:
    """A seed. Its attributes are read-only: an assignment raises ``AttributeError``.

    Attributes:
        name: its name, unique in the manager.
        slot: the name of its slot.
        blueprint: the name of its blueprint, or of the class or function it was germinated from.
        spec: mode, objective, isolation.
        stage: its `Stage`.
        alpha: its share in the output of the slot (the mean over the channels, if each has its own).
        config: the options of the blueprint.
        source: the name of the earlier slot whose value it reads; None: it reads that of its own slot.
        hyper: settings of its own optimizer groups; None: it is in groups of the host.
        optimizer: the index of the optimizer that was requested, or None.
        groups: the group that was requested, as in ``places``, or the function, or None.
        places: name of each trainable parameter -> (index of the optimizer, index of the group there, without
            groups of seeds) that it joined, or that its own group is a copy of; None before it is live.
        registered: whether the blueprint is a registered name, rather than code.
        ramp, ramp_step: the last blend, and the steps made of it.
        paused: whether its ramp and its updates are stopped.
        steps: the number of training steps since it went live, without pauses.
        trained_steps: the number of these in which it was in TRAINING, ran, and was updated.
        did_not_run: the reason why no call has run it, if known; None if one has.
        latency_ms: milliseconds from `germinate` until it was live.
        loss_with, loss_without: the losses last measured, with alpha above 0 and at 0; None before.
    """

    name: str
    slot: str
    blueprint: str
    spec: GraftSpec
    stage: Stage = Stage.DORMANT
    alpha: float = 0.0
    config: Mapping[str, Any] = field(default_factory=dict)
    registered: bool = False
    hyper: Mapping[str, Any] | None = None
    source: str | None = None
    paused: bool = False
    steps: int = 0
    trained_steps: int = 0
    did_not_run: str | None = None
    latency_ms: float | None = None
    loss_with: float | None = None
    loss_without: float | None = None
    optimizer: int | None = None
    groups: Any = None
    places: Mapping[str, tuple[int, int]] | None = None
    _graft: Graft | None = None
    _counted: tuple[int, int] = (0, 0)
    ramp: Ramp | None = None
    ramp_step: int = 0

    @property
    def module(self) -> nn.Module | None:
        """Its module; None before it is live and after it was culled."""
        return self._graft.module if self._graft else None

    @property
    def runs(self) -> int:
        """The number of calls that ran it, with gradients or without. Those of a fossil are not counted.

        A call of another form than the traced one (see ``host.explain()``) does not run it. Calls inside
        `shadow`, `measure` and the isolation check are not counted, nor is what ``torch.utils.checkpoint``
        runs again. Reading it waits for the device.
        """
        return sum(self._counts)

    @property
    def training_runs(self) -> int:
        """The number of these calls in which gradients were on."""
        return self._counts[0]

    @property
    def _counts(self) -> tuple[int, int]:
        return self._counted if self._graft is None else self._graft.runs

    @property
    def target(self) -> float | None:
        """The target of the last blend; None before the first one."""
        return self.ramp.target if self.ramp else None

    @property
    def progress(self) -> str:
        """The progress of its blend, in words; empty if it is in none."""
        if self.ramp is None or self.stage is not Stage.BLENDING:
            return ""
        done = f"{self.ramp_step} of {self.ramp.length} steps"
        return f"alpha {self.alpha:.3g} after {done}; manager.step() goes on"

    @property
    def contribution(self) -> float | None:
        """The measured loss without the seed minus the loss with it; None before it was measured."""
        if self.loss_with is None or self.loss_without is None:
            return None
        return self.loss_without - self.loss_with

    @property
    def is_live(self) -> bool:
        """Whether it is in the graph, and not yet a fossil."""
        return self.stage in _LIVE

    @property
    def is_isolated(self) -> bool:
        """Whether it is live, and the host's gradients have no contribution through it."""
        # What replaces the host's value has to let gradients through once it has taken its place.
        has_ended = self.spec.mode == "convex" and self.stage is Stage.HOLDING
        return self.is_live and self.spec.isolated and not has_ended

    @property
    def alphas(self) -> tuple[float, ...]:
        """Its alpha: one number, or one for each channel if it has these."""
        if self._graft is None or self._graft.alpha.dim() == 0:
            return (self.alpha,)
        return tuple(self._graft.alpha.flatten().tolist())

    def to_dict(self) -> dict[str, Any]:
        """Its description and state, in JSON types."""
        module = self.module
        return {
            "name": self.name,
            "slot": self.slot,
            "source": self.source,
            "blueprint": self.blueprint,
            "mode": self.spec.mode,
            "isolated": self.spec.isolated,
            "stage": self.stage.name,
            "alpha": self.alpha,
            "parameters": sum(p.numel() for p in module.parameters()) if module is not None else None,
        }

    def set_alpha(self, *alphas: float) -> None:
        """Set the share (of each channel), in place: nothing recompiles.

        Args:
            *alphas: one number, or one for each channel.
        """
        if len(alphas) == 1:  # in each step of a ramp: past what `amend` and ``nn.Module`` look up
            self.__dict__["alpha"] = alphas[0]
            if self._graft is not None:
                cast(Tensor, self._graft._buffers["alpha"]).fill_(alphas[0])
            return
        uniform = len(set(alphas)) == 1  # the mean of equal numbers may be another one
        amend(self, alpha=alphas[0] if uniform else sum(alphas) / len(alphas))
        if self._graft is not None:
            values = torch.tensor(alphas, dtype=self._graft.alpha.dtype, device="cpu")
            self._graft.alpha.copy_(values.view_as(self._graft.alpha))

    def enter(self, stage: Stage) -> None:
        """Set the stage, and the flags by which the blend operators know it.

        Args:
            stage: the new one.
        """
        amend(self, stage=stage)
        if self._graft:
            self._graft.learning.fill_(stage is Stage.TRAINING)
            self._graft.released.fill_(stage is Stage.HOLDING)

    def take(self, graft: Graft) -> None:
        """Set the graft of this seed.

        Args:
            graft: the module in the host's graph that holds the seed's module.
        """
        amend(self, _graft=graft)

    def leave(self, stage: Stage) -> None:
        """Forget the graft, its ramp and its alpha: the seed is no longer in the graph.

        Args:
            stage: the new stage.
        """
        amend(self, _counted=self._counts, _graft=None, ramp=None, alpha=0.0, stage=stage)

    def begin(self, ramp: Ramp, step: int = 0) -> None:
        """Begin a ramp of alpha.

        Args:
            ramp: the course of alpha.
            step: the number of its steps that were made before. Default 0.
        """
        amend(self, ramp=ramp, ramp_step=step)

    def next_alphas(self) -> tuple[float, ...]:
        """Alpha after one more step along the ramp, or as it is. A schedule may raise."""
        return self.alphas if self.ramp is None else self.ramp.alphas(self.ramp_step + 1)

    def advance(self, alphas: tuple[float, ...] | None = None) -> bool:
        """One step along the ramp; return whether the target is reached.

        Args:
            alphas: what `next_alphas` returned. Default None: it is called.
        """
        if self.ramp is None:
            return False
        self.set_alpha(*(self.next_alphas() if alphas is None else alphas))
        self.__dict__["ramp_step"] += 1
        return self.ramp_step >= self.ramp.length

    def count(self, *, trained: bool = False) -> None:
        """Count one training step.

        Args:
            trained: True: one in which it was updated. Default False: one in which it was live.
        """
        self.__dict__["trained_steps" if trained else "steps"] += 1

    def __repr__(self) -> str:
        return f"Seed({self.name!r} at {self.slot!r}, {self.stage.name}, alpha={self.alpha:g})"

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIELDS and name not in self.__dict__:  # while it is made
            object.__setattr__(self, name, value)
            return
        self._refuse(name)

    def __delattr__(self, name: str) -> None:
        self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        if not hasattr(self, name):
            raise AttributeError(
                f"a Seed has no attribute {name!r}, and takes no others than its own. Keep notes of yours in "
                f"a dictionary by seed.name"
            )
        instead = _INSTEAD.get(name, "the manager keeps it")
        raise AttributeError(f"{name} of seed {self.name!r} is only read: {instead}")


_FIELDS = frozenset(field.name for field in fields(Seed))
_LIVE = (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)  # no set: to hash an enum's member takes longer


def amend(seed: Seed, **facts: Any) -> None:
    """Change what the record says. For the manager: nothing that runs follows.

    Raises:
        AttributeError: for a name that is no field of the record.
    """
    if unknown := facts.keys() - _FIELDS:
        raise AttributeError(f"a Seed has no attribute {min(unknown)!r}")
    seed.__dict__.update(facts)
