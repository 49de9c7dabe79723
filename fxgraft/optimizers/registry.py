"""Who owns a parameter, and which optimizer group it is in.

A parameter of a seed has one owner, and joins one existing optimizer group; or, where the seed has
hyper-parameters of its own, is in a group of the seed's own (see ``fxgraft.optimizers.groups``).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.optimizers import fitness, groups
from fxgraft.optimizers.groups import OWNER, OwnGroup
from fxgraft.seeds.seed import Seed
from fxgraft_passes.errors import BlueprintError


class SeedParameterRegistry:
    """The parameters of live seeds: parameter -> owner, and their place in the optimizers.

    Args:
        optimizers: those that seeds are trained by; may be empty.
        schedulers: of learning rates, to keep in step with groups that seeds add.
    """

    def __init__(self, optimizers: Sequence[Optimizer] = (), schedulers: Sequence[Any] = ()):
        self._optimizers = tuple(optimizers)
        self._schedulers = tuple(schedulers)
        self._owned: dict[str, list[weakref.ref[nn.Parameter]]] = {}
        self._counted: dict[int, tuple[int, Counter[int]]] = {}
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            self._dims(group["params"])  # now, and not when a seed germinates

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
        for name, parameter in _trainable(module) if self._optimizers else ():
            if (why := fitness.unfit(self._optimizer_for(parameter), parameter)) is not None:
                raise BlueprintError(
                    f"seed {seed.name!r} at slot {seed.slot!r}: {name} cannot be trained: {why}"
                )

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

    def check(self, hyper: Mapping[str, Any] | None, seed: str = "", module: nn.Module | None = None) -> None:
        """Raise `ValueError` for hyper-parameters that a seed (or this ``module``) cannot have."""
        if hyper is None:
            return
        if not self._optimizers:
            raise ValueError("hyper: expected an optimizer to train the seed by; the manager has none")
        groups.check(hyper, [group for o in self._optimizers for group in o.param_groups])
        if module is not None:
            self._own_groups(seed, dict(_trainable(module)), hyper)

    def join(
        self, module: nn.Module, prefix: str, seed: str = "", hyper: Mapping[str, Any] | None = None
    ) -> None:
        """Add the trainable parameters of ``module`` to the optimizers.

        Each joins the group that holds the most parameters of its own number of dimensions: biases
        go where biases are, matrices to the optimizer for matrices. With ``hyper`` the seed gets a
        group of its own in each of these optimizers.
        """
        named = {f"{prefix}.{name}": parameter for name, parameter in _trainable(module)}
        if not self._optimizers:
            return
        if hyper is not None:
            for own, members in self._own_groups(seed, named, hyper):
                own.add(members)
            return
        for name, parameter in named.items():
            group = self._group_for(parameter)
            group["params"].append(parameter)
            if "param_names" in group:
                group["param_names"].append(name)

    def leave(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take parameters out of every group and every optimizer's state; a seed's own group goes too."""
        leaving = {id(p): p for p in parameters}
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                self._take_out(group, leaving.keys() & set(map(id, group["params"])))
            for parameter in leaving.values():
                optimizer.state.pop(parameter, None)
            for place in reversed(range(len(optimizer.param_groups))):
                group = optimizer.param_groups[place]
                if OWNER in group and not group["params"]:
                    groups.remove(optimizer, place, self._schedulers)

    def _own_groups(
        self, seed: str, named: Mapping[str, nn.Parameter], hyper: Mapping[str, Any]
    ) -> list[tuple[OwnGroup, dict[str, nn.Parameter]]]:
        """One for each optimizer that has a parameter to train, like the group that the first would join."""
        chosen = {name: self._group_for(parameter) for name, parameter in named.items()}
        found = []
        for optimizer in self._optimizers:
            ours = {id(group) for group in optimizer.param_groups}
            members = {name: p for name, p in named.items() if id(chosen[name]) in ours}
            if members:
                like = chosen[next(iter(members))]
                found.append((groups.plan(optimizer, like, seed, hyper, self._schedulers), members))
        if found:
            groups.check(hyper, [own.settings for own, _ in found])
        return found

    def _optimizer_for(self, parameter: nn.Parameter) -> Optimizer:
        group = self._group_for(parameter)
        return next(o for o in self._optimizers if any(g is group for g in o.param_groups))

    def _group_for(self, parameter: nn.Parameter) -> dict[str, Any]:
        shared = [group for o in self._optimizers for group in o.param_groups if OWNER not in group]

        def closeness(group: dict[str, Any]) -> tuple[int, int]:
            dims = self._dims(group["params"])
            return dims[parameter.dim()], sum(n for d, n in dims.items() if d < 2)

        return max(shared, key=closeness)

    def _dims(self, parameters: list[nn.Parameter]) -> Counter[int]:
        """Number of dimensions -> how many parameters of a group have it.

        Only those at its end that are new are counted: the group may have all of a large host's.
        """
        seen, dims = self._counted.get(id(parameters), (0, Counter()))
        if seen > len(parameters):  # someone else took some out: from the start
            seen, dims = 0, Counter()
        dims.update(p.dim() for p in parameters[seen:])
        self._counted[id(parameters)] = len(parameters), dims
        return dims

    def _take_out(self, group: dict[str, Any], leaving: set[int]) -> None:
        """Delete parameters from a group, by their ids: from its end, where those of seeds are."""
        parameters = group["params"]
        seen, dims = self._counted.get(id(parameters), (0, Counter()))
        place = len(parameters)
        while leaving:
            place -= 1
            if id(parameters[place]) in leaving:
                leaving.discard(id(parameters[place]))
                if place < seen:
                    seen -= 1
                    dims[parameters[place].dim()] -= 1
                for key in ("params", "param_names"):
                    if key in group:
                        del group[key][place]
        self._counted[id(parameters)] = seen, dims


def _trainable(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
