"""The owner of each parameter, and the optimizer group that it is in.

A parameter of a seed has one owner, and joins the optimizer group of the layers around its slot (see
``fxgraft.optimizers._placement``); or, where the seed has hyper-parameters of its own, is in a group of the
seed's own that is otherwise like that one (see ``fxgraft.optimizers.groups``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.errors import BlueprintError
from fxgraft.optimizers import groups, requests
from fxgraft.optimizers._compatibility import begin_in_step, is_fused_sgd
from fxgraft.optimizers.entries import following, weights_in
from fxgraft.optimizers.group_index import Group, shared_groups
from fxgraft.optimizers.groups import OwnGroup
from fxgraft.optimizers.places import Destination, Places, Rings
from fxgraft.optimizers.removal import take_out
from fxgraft.optimizers.requests import Groups
from fxgraft.seeds.seed import Seed, amend


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
        self._owned: dict[str, list[nn.Parameter]] = {}  # no weak ones: torch refuses to swap such tensors
        self._where = Places(self._optimizers, model, rings, partial(_all, self._owned))

    @property
    def trains(self) -> bool:
        """Whether there is any optimizer."""
        return bool(self._optimizers)

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """What trains the seeds."""
        return self._optimizers

    def reschedule(self, schedulers: Sequence[Any]) -> None:
        """Keep these schedulers in step from now on."""
        self._schedulers = tuple(schedulers)

    def claim(self, seed: Seed, module: nn.Module, of_host: Callable[[Tensor], bool]) -> None:
        """Make ``seed`` the owner of the parameters of ``module``. ``of_host`` tells the host's.

        Raises:
            BlueprintError: if one is the host's or another seed's; nothing is claimed then.
        """
        self.admit(seed, module, of_host)
        self._owned[seed.name] = list(module.parameters())

    def admit(
        self, seed: Seed, module: nn.Module, of_host: Callable[[Tensor], bool], tries: bool = True
    ) -> None:
        """Raise `BlueprintError` for a parameter or buffer of the host or of another seed in ``module``.

        Also for one that an optimizer has already, or that none can train; ``tries`` as of `Places.of`.
        """
        owners = {id(p): f"seed {owner!r}" for owner in self._owned for p in self.parameters(owner)}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            owner = "the host" if of_host(tensor) else owners.get(id(tensor))
            if owner:
                raise BlueprintError(
                    f"seed {seed.name!r} at slot {seed.slot!r}: expected parameters and buffers of its own; "
                    f"{name} belongs to {owner}, whose training it would change"
                )
        if (found := self._trained(module)) is not None:
            name, group = found
            raise BlueprintError(
                f"seed {seed.name!r} at slot {seed.slot!r}: expected parameters that no optimizer has; "
                f"{name} is in {group} already, and would be updated twice in each step. Take it out "
                f"there, or give a copy of the module (copy.deepcopy)"
            )
        self._where.of(seed, module, asked=False, tries=tries)

    def _trained(self, module: nn.Module) -> tuple[str, str] | None:
        """The name of a parameter that an optimizer has already, and in which group; None: there is none."""
        names = {id(p): name for name, p in module.named_parameters()}
        for optimizer in self._optimizers:
            for number, group in enumerate(optimizer.param_groups):
                # In C: the groups have all parameters of the host.
                if there := names.keys() & set(map(id, group["params"])):
                    return names[there.pop()], f"group {number} of {type(optimizer).__name__}"
        return None

    def replace(self, new: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Replace parameters in optimizers and owners, old -> new."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["params"][:] = [new.get(p, p) for p in group["params"]]
            for old, parameter in new.items():
                if old in optimizer.state:
                    optimizer.state[parameter] = optimizer.state.pop(old)
        for seed in self._owned:
            self._owned[seed] = [new.get(p, p) for p in self.parameters(seed)]

    def release(self, seed: str) -> None:
        """Forget a seed's ownership (its parameters are the host's now, or gone)."""
        self._owned.pop(seed, None)

    def parameters(self, seed: str) -> list[nn.Parameter]:
        """The parameters that ``seed`` owns."""
        return list(self._owned.get(seed, ()))

    def request(
        self,
        seed: Seed,
        hyper: Mapping[str, Any] | None,
        optimizer: Optimizer | int | None,
        groups_: Groups | None,
    ) -> None:
        """Store the hyper-parameters, the optimizer and the groups that are requested for ``seed``.

        Raises:
            ValueError: no seed can have them.
        """
        given = {"hyper": hyper, "optimizer": optimizer, "groups": groups_}
        for name, value in given.items():
            if value is not None and not self._optimizers:
                raise ValueError(f"{name}: expected an optimizer to train the seed by; the manager has none")
        if hyper is not None:
            groups.check(hyper, [group for o in self._optimizers for group in o.param_groups])
        number = None if optimizer is None else requests.number_of(optimizer, self._optimizers)
        if groups_ is None or callable(groups_):
            asked: Any = groups_
        else:
            asked = requests.group_of(groups_, number, self._optimizers)
        amend(seed, hyper=hyper if hyper is None else dict(hyper), optimizer=number, groups=asked)

    def check_places(self, seed: Seed, module: nn.Module) -> None:
        """Raise `ValueError` or `BlueprintError` where `join` would."""
        self._destinations(seed, module, "")

    def preview(self, seed: Seed, module: nn.Module) -> dict[str, Destination]:
        """Name of each trainable parameter of ``module`` -> where `join` would bring it. Raises as that."""
        found: dict[str, Destination] = {}
        for like, members, own in self._destinations(seed, module, ""):
            number, place = like
            optimizer = self._optimizers[number]
            group = shared_groups(optimizer)[place]
            settings = group if own is None else own.settings
            lr, decay = (_number(settings.get(name)) for name in ("lr", "weight_decay"))
            index = next(i for i, other in enumerate(optimizer.param_groups) if other is group)
            kind = type(optimizer).__name__
            where = Destination(number, kind, index, own is not None, lr, decay)
            found.update(dict.fromkeys(members, where))
        return {name: found[name] for name, p in module.named_parameters() if name in found}

    def join(self, seed: Seed, module: nn.Module, prefix: str) -> None:
        """Add the trainable parameters of ``module`` to the optimizers.

        Each joins the group of the layers around the slot, as ``placement`` has it. Where ``seed`` has
        hyper-parameters of its own, each of these groups has its like in one of the seed's own.

        Args:
            seed: whose they are.
            module: the seed's.
            prefix: of the names of its parameters.
        """
        places: dict[str, Group] = {}
        for like, members, own in self._destinations(seed, module, f"{prefix}."):
            places.update({name.removeprefix(f"{prefix}."): like for name in members})
            if own is not None:
                own.add(members)
                continue
            optimizer = self._optimizers[like[0]]
            group = shared_groups(optimizer)[like[1]]
            for name, parameter in members.items():
                _add(group, name, parameter)
            begin_in_step(optimizer, group, members.values())
        self._where.accept()
        amend(seed, places=places)

    def keep_in_step(self) -> None:
        """Make seeds that had no gradient in the first step of their group take part in the next one."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                if is_fused_sgd(optimizer, group):
                    ours = {id(p) for p in _all(self._owned)}
                    begin_in_step(optimizer, group, [p for p in group["params"] if id(p) in ours])

    def copy_state(self, like: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Copy the optimizer state of parameters to new ones: new -> old."""
        for optimizer in self._optimizers if like else ():
            trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for new, old in like.items():
                if old in optimizer.state and id(new) in trained:
                    state = optimizer.state[new] = copy.deepcopy(optimizer.state[old])
                    for key in weights_in(optimizer, old) & state.keys():
                        state[key] = following(old.detach(), new.detach(), state[key])

    def leave(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take parameters out of every group and every optimizer's state; a seed's own group goes too."""
        was_current = self._where.is_current
        take_out(self._optimizers, self._schedulers, parameters)
        if was_current:
            self._where.accept()

    def _destinations(
        self, seed: Seed, module: nn.Module, prefix: str
    ) -> list[tuple[Group, dict[str, nn.Parameter], OwnGroup | None]]:
        """The groups, the parameters that go there by their whole names, and those of the seed's own."""
        together: dict[Group, dict[str, nn.Parameter]] = {}
        for name, (parameter, group) in self._where.of(seed, module).items():
            together.setdefault(group, {})[f"{prefix}{name}"] = parameter
        if seed.hyper is None:
            return [(group, members, None) for group, members in together.items()]
        found = []
        for (number, place), members in sorted(together.items(), key=lambda item: item[0][0]):
            optimizer = self._optimizers[number]
            like = shared_groups(optimizer)[place]
            own = groups.plan(optimizer, like, seed.name, seed.hyper, self._schedulers)
            found.append(((number, place), members, own))
        if found:
            groups.check(seed.hyper, [own.settings for _, _, own in found])
        return list(found)


def _all(owned: Mapping[str, list[nn.Parameter]]) -> list[nn.Parameter]:
    return [p for parameters in owned.values() for p in parameters]


def _add(group: dict[str, Any], name: str, parameter: nn.Parameter) -> None:
    group["params"].append(parameter)
    if "param_names" in group:
        group["param_names"].append(name)


def _number(setting: Any) -> float | None:
    """A setting for people; a tensor on a device without data has none."""
    if isinstance(setting, Tensor) and (setting.is_meta or setting.numel() != 1):
        return None
    return float(setting) if isinstance(setting, (int, float, Tensor)) else None
