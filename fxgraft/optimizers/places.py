"""Which group each parameter of a seed goes to: as it was saved, as is asked for, or by the rule."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxgraft.errors import BlueprintError
from fxgraft.optimizers import _compatibility, _placement, requests
from fxgraft.optimizers.group_index import Group, GroupIndex, kinds_in, shared_groups
from fxgraft.seeds.seed import Seed

Rings = Callable[[str, Callable[[str], bool]], Iterator[tuple[str, ...]]]
"""Slot, and what counts as a layer -> names of the modules and parameters around it, nearest first."""
_NO_GROUP = f"the optimizers have no group that is no seed's. {_compatibility.INSTEAD}"


@dataclass(frozen=True)
class Destination:
    """Where a parameter of a seed goes.

    Attributes:
        optimizer: the number of the optimizer among the manager's.
        kind: its class.
        group: the place of the group in its ``param_groups``.
        own: whether the seed gets a group of its own there, which is like that one but for ``hyper``.
        lr, weight_decay: of the group that it will be in; None where it has no such setting.
    """

    optimizer: int
    kind: str
    group: int
    own: bool = False
    lr: float | None = None
    weight_decay: float | None = None

    def __str__(self) -> str:
        settings = {"lr": self.lr, "weight_decay": self.weight_decay}
        text = ", ".join(f"{name} {value:g}" for name, value in settings.items() if value is not None)
        where = f"group {self.group} of optimizer {self.optimizer} ({self.kind})"
        return f"{'its own, like ' if self.own else ''}{where}{', ' if text else ''}{text}"


class Places:
    """Finds the groups.

    Args:
        optimizers: of the manager.
        model: the host's, without seeds.
        rings: knows what is around a slot.
        of_seeds: the parameters of live seeds.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        model: nn.Module,
        rings: Rings,
        of_seeds: Callable[[], Iterable[nn.Parameter]],
    ):
        self._optimizers, self._model = optimizers, model
        self._rings, self._of_seeds = rings, of_seeds
        self._lock = threading.Lock()  # a seed that is built in the background looks for its place there
        self._group_index = GroupIndex(model, optimizers, ())  # now, and not when a seed germinates

    @property
    def is_current(self) -> bool:
        """Whether the groups are unchanged since they were looked at."""
        return self._group_index.is_current

    def accept(self) -> None:
        """The groups were changed by us."""
        self._group_index.accept()

    def of(
        self, seed: Seed, module: nn.Module, *, asked: bool = True, tries: bool = True
    ) -> dict[str, tuple[nn.Parameter, Group]]:
        """Name -> parameter and group, of all that is trainable in ``module``.

        Args:
            seed: whose places are known if it is of a checkpoint, or may be asked for.
            module: the seed's.
            asked: False while it has not its final form, in which a function is asked by name.
            tries: whether optimizers that are not known are tried out; on the training thread only.

        Raises:
            BlueprintError: no group can train one, or the one that is asked for cannot.
            ValueError: there is no group as is asked for.
        """
        if not self._optimizers:
            return {}
        wanted = self._wanted(seed) if asked else lambda name, parameter: None
        with self._lock:
            if not self.is_current:
                ids = {id(parameter) for parameter in self._of_seeds()}
                self._group_index = GroupIndex(self._model, self._optimizers, ids)
            group_index = self._group_index
            rings = list(self._rings(seed.slot, lambda path: bool(group_index.of(path))))
            found = {}
            for name, (parameter, kind) in kinds_in(module).items():
                found[name] = parameter, self._group(seed, name, parameter, kind, rings, wanted, tries)
            return found

    def _group(
        self,
        seed: Seed,
        name: str,
        parameter: nn.Parameter,
        kind: str,
        rings: Sequence[tuple[str, ...]],
        wanted: Callable[[str, nn.Parameter], Group | None],
        tries: bool,
    ) -> Group:
        reasons: dict[Group, str | None] = {}

        def can_train(group: Group) -> bool:
            if seed.optimizer is not None and group[0] != seed.optimizer:
                return False
            if group not in reasons:
                optimizer = self._optimizers[group[0]]
                settings = shared_groups(optimizer)[group[1]]
                reasons[group] = _compatibility.why_incompatible(optimizer, settings, parameter, tries)
            return reasons[group] is None

        group = wanted(name, parameter)
        if group is None:
            group = _placement.choose(kind, rings, self._group_index, self._optimizers, can_train)
        if group is None or not can_train(group):
            why = next((why for why in reasons.values() if why), _NO_GROUP)
            raise BlueprintError(f"seed {seed.name!r} at slot {seed.slot!r}: {name} cannot be trained: {why}")
        return group

    def _wanted(self, seed: Seed) -> Callable[[str, nn.Parameter], Group | None]:
        """What is known, or asked for, of the group of a parameter."""
        saved, asked = seed.places, seed.groups
        if saved is not None:
            return lambda name, parameter: self._existing(seed, name, saved.get(name))
        if asked is None:
            return lambda name, parameter: None
        if not callable(asked):
            return lambda name, parameter: self._existing(seed, name, asked)

        def ask(name: str, parameter: nn.Parameter) -> Group | None:
            answer = asked(name, parameter)
            return None if answer is None else requests.group_of(answer, seed.optimizer, self._optimizers)

        return ask

    def _existing(self, seed: Seed, name: str, group: Any) -> Group | None:
        if group is None:
            return None
        number, place = group
        if number >= len(self._optimizers) or place >= len(shared_groups(self._optimizers[number])):
            raise ValueError(
                f"seed {seed.name!r}: {name} was in group {place} of optimizer {number}; there is none now"
            )
        return number, place
