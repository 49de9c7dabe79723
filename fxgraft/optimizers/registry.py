"""Who owns a parameter, and which optimizer group it is in.

A parameter of a seed has one owner, and joins the optimizer group of the layers around its slot (see
``fxgraft.optimizers.placement``); or, where the seed has hyper-parameters of its own, is in a group of the
seed's own that is otherwise like that one (see ``fxgraft.optimizers.groups``).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.optimizers import fitness, groups, placement
from fxgraft.optimizers.census import Census, Group, shared_groups
from fxgraft.optimizers.groups import OwnGroup
from fxgraft.optimizers.kinds import kinds_in
from fxgraft.optimizers.leaving import take_out
from fxgraft.seeds.seed import Seed
from fxgraft_passes.errors import BlueprintError

Rings = Callable[[str, Callable[[str], bool]], Iterator[tuple[str, ...]]]
"""Slot, and what counts as a layer -> names of the modules and parameters around it, nearest first."""


class SeedParameterRegistry:
    """The parameters of live seeds: parameter -> owner, and their place in the optimizers.

    Args:
        optimizers: those that seeds are trained by; may be empty.
        schedulers: of learning rates, to keep in step with groups that seeds add.
        model: the host's, without seeds.
        rings: knows what is around a slot.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any], model: nn.Module, rings: Rings
    ):
        self._optimizers = tuple(optimizers)
        self._schedulers = tuple(schedulers)
        self._model, self._rings = model, rings
        self._owned: dict[str, list[weakref.ref[nn.Parameter]]] = {}
        self._lock = threading.Lock()  # a seed that is built in the background looks for its place there
        self._counted = Census(model, self._optimizers, ())  # now, and not when a seed germinates

    @property
    def trains(self) -> bool:
        """Whether there is any optimizer."""
        return bool(self._optimizers)

    def reschedule(self, schedulers: Sequence[Any]) -> None:
        """Keep these schedulers in step from now on."""
        self._schedulers = tuple(schedulers)

    def claim(self, seed: Seed, module: nn.Module, of_host: Callable[[Tensor], bool]) -> None:
        """Make ``seed`` the owner of the parameters of ``module``. ``of_host`` tells the host's.

        Raises:
            BlueprintError: if one is the host's or another seed's; nothing is claimed then.
        """
        self.admit(seed, module, of_host)
        self._owned[seed.name] = [weakref.ref(p) for p in module.parameters()]

    def admit(self, seed: Seed, module: nn.Module, of_host: Callable[[Tensor], bool]) -> None:
        """Raise `BlueprintError` for a parameter or buffer of the host or of another seed in ``module``.

        Also for a parameter that no optimizer can train.
        """
        owners = {id(p): f"seed {owner!r}" for owner in self._owned for p in self.parameters(owner)}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            owner = "the host" if of_host(tensor) else owners.get(id(tensor))
            if owner:
                raise BlueprintError(
                    f"seed {seed.name!r} at slot {seed.slot!r}: expected parameters and buffers of its own; "
                    f"{name} belongs to {owner}, whose training it would change"
                )
        self._places(module, seed.slot, seed.name)

    def replace(self, new: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Let optimizers and owners have other parameters in the place of some, old -> new."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["params"][:] = [new.get(p, p) for p in group["params"]]
            for old, parameter in new.items():
                if old in optimizer.state:
                    optimizer.state[parameter] = optimizer.state.pop(old)
        for seed in self._owned:
            self._owned[seed] = [weakref.ref(new.get(p, p)) for p in self.parameters(seed)]

    def disown(self, seed: str) -> None:
        """Forget a seed's ownership (its parameters are the host's now, or gone)."""
        self._owned.pop(seed, None)

    def parameters(self, seed: str) -> list[nn.Parameter]:
        """The parameters that ``seed`` owns."""
        return [p for ref in self._owned.get(seed, ()) if (p := ref()) is not None]

    def check(self, hyper: Mapping[str, Any] | None) -> None:
        """Raise `ValueError` for hyper-parameters that no seed can have."""
        if hyper is None:
            return
        if not self._optimizers:
            raise ValueError("hyper: expected an optimizer to train the seed by; the manager has none")
        groups.check(hyper, [group for o in self._optimizers for group in o.param_groups])

    def check_places(self, seed: Seed, module: nn.Module) -> None:
        """Raise `ValueError` or `BlueprintError` where `join` would."""
        self._destinations(seed, module, "")

    def join(self, seed: Seed, module: nn.Module, prefix: str) -> None:
        """Add the trainable parameters of ``module`` to the optimizers.

        Each joins the group of the layers around the slot, as ``placement`` has it. Where ``seed`` has
        hyper-parameters of its own, each of these groups has its like in one of the seed's own.

        Args:
            seed: whose they are.
            module: the seed's.
            prefix: of the names of its parameters.
        """
        for destination, members in self._destinations(seed, module, prefix):
            if isinstance(destination, OwnGroup):
                destination.add(members)
                continue
            number, place = destination
            group = shared_groups(self._optimizers[number])[place]
            for name, parameter in members.items():
                _add(group, name, parameter)
        self._counted.accept()

    def leave(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take parameters out of every group and every optimizer's state; a seed's own group goes too."""
        was_current = self._counted.is_current
        take_out(self._optimizers, self._schedulers, parameters)
        if was_current:
            self._counted.accept()

    def _destinations(
        self, seed: Seed, module: nn.Module, prefix: str
    ) -> list[tuple[Group | OwnGroup, dict[str, nn.Parameter]]]:
        """Where the parameters go, by their whole names: one group of the seed's own for each it is like."""
        together: dict[Group, dict[str, nn.Parameter]] = {}
        for name, (parameter, group) in self._places(module, seed.slot, seed.name).items():
            together.setdefault(group, {})[f"{prefix}.{name}"] = parameter
        if seed.hyper is None:
            return list(together.items())
        found: list[tuple[Group | OwnGroup, dict[str, nn.Parameter]]] = []
        for (number, place), members in sorted(together.items(), key=lambda item: item[0][0]):
            optimizer = self._optimizers[number]
            like = shared_groups(optimizer)[place]
            found.append((groups.plan(optimizer, like, seed.name, seed.hyper, self._schedulers), members))
        if found:
            groups.check(seed.hyper, [own.settings for own, _ in found if isinstance(own, OwnGroup)])
        return found

    def _places(self, module: nn.Module, slot: str, seed: str) -> dict[str, tuple[nn.Parameter, Group]]:
        """Name -> parameter, and the group that it joins or that its own group is like."""
        if not self._optimizers:
            return {}
        with self._lock:
            census = self._census()
            rings = list(self._rings(slot, lambda path: bool(census.of(path))))
            found = {}
            for name, (parameter, kind) in kinds_in(module).items():
                reasons: list[str] = []
                can_train = self._fitness(parameter, reasons)
                group = placement.choose(kind, rings, census, self._optimizers, can_train)
                if group is None:
                    raise BlueprintError(
                        f"seed {seed!r} at slot {slot!r}: {name} cannot be trained: {reasons[0]}"
                    )
                found[name] = parameter, group
            return found

    def _fitness(self, parameter: nn.Parameter, reasons: list[str]) -> Callable[[Group], bool]:
        """Whether a group can train ``parameter``; why not is added to ``reasons``."""
        known: dict[Group, bool] = {}

        def can_train(group: Group) -> bool:
            if group not in known:
                number, place = group
                optimizer = self._optimizers[number]
                why = fitness.unfit(optimizer, shared_groups(optimizer)[place], parameter)
                known[group] = why is None
                reasons.extend([why] if why is not None else [])
            return known[group]

        return can_train

    def _census(self) -> Census:
        if not self._counted.is_current:
            of_seeds = {id(p) for seed in self._owned for p in self.parameters(seed)}
            self._counted = Census(self._model, self._optimizers, of_seeds)
        return self._counted


def _add(group: dict[str, Any], name: str, parameter: nn.Parameter) -> None:
    group["params"].append(parameter)
    if "param_names" in group:
        group["param_names"].append(name)
