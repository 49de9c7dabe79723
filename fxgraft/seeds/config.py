"""The description of a seed, which calls, commands, configurations and files share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxgraft_passes import GraftSpec, Objective, Slot
from fxgraft_passes.graft import MODES

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from fxgraft.lifecycle.building import BlueprintLike
    from fxgraft.optimizers.requests import Groups

DEFAULT_MODE = "residual"


@dataclass(frozen=True, kw_only=True)
class SeedOrigin:
    """What a seed is made from, and where: the part that its record in a file has, too."""

    slot: str
    blueprint: Any
    source: str | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class SeedData(SeedOrigin):
    """The part that is data. `SeedManager.germinate` has the meaning of each field."""

    mode: str | None = field(default=None, metadata={"enum": [*MODES, None]})
    isolated: bool = True
    before: str | None = None
    after: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SeedConfig(SeedData):
    """All that `SeedManager.germinate` and `SeedManager.plan` are asked for."""

    blueprint: BlueprintLike
    objective: str | Objective = "trust"
    hyper: Mapping[str, Any] | None = None
    optimizer: Optimizer | int | None = None
    groups: Groups | None = None

    def spec(self, slot: Slot) -> GraftSpec:
        """How the seed is wired at ``slot``. Raises `ValueError` for an unknown mode or objective."""
        law = self.objective if isinstance(self.objective, Objective) else Objective(self.objective)
        copy_source = slot.input.copy and slot.source is not None
        mode = self.mode or DEFAULT_MODE
        return GraftSpec(mode, law.name, law.radius, self.isolated, slot.copy, copy_source=copy_source)
