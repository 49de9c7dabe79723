"""Which groups hold the parameters of which part of a model, counted once.

A germination asks for some parts; it must not walk through a large model. What is counted stays right while
seeds come and go, and is counted anew when somebody else has changed the groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxgraft.optimizers.groups import OWNER
from fxgraft.optimizers.kinds import kind_of

Group = tuple[int, int]
"""The number of an optimizer among the manager's, and of a group among those of it that are no seed's own."""

Counts = Mapping[Group, Counter[str]]
"""Group -> how many parameters of each kind it holds, in the order in which they occur."""


def shared_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups that are no seed's own."""
    return [group for group in optimizer.param_groups if OWNER not in group]


class Census:
    """What the groups of some optimizers hold of a model.

    Args:
        model: without seeds.
        optimizers: in the order of their numbers.
        of_seeds: the ids of the seeds' parameters, which are not counted.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], of_seeds: Collection[int]):
        self._optimizers = optimizers
        self._parts: dict[str, dict[Group, Counter[str]]] = {}
        self._sizes = [[len(group["params"]) for group in shared_groups(o)] for o in optimizers]
        where: dict[int, Group] = {}
        strangers: Counter[Group] = Counter()
        for group, parameters in _members(optimizers):
            where.update((id(parameter), group) for parameter in parameters)
            strangers[group] = sum(id(parameter) not in of_seeds for parameter in parameters)
        self._occupied = {group for group, number in strangers.items() if number}
        for path, module in model.named_modules(remove_duplicate=False):
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in where:
                    self._count(path, name, where[id(parameter)], kind_of(module, parameter))

    def _count(self, path: str, name: str, group: Group, kind: str) -> None:
        for part in (f"{path}.{name}" if path else name, *_upwards(path)):
            counts = self._parts.setdefault(part, {})
            counts.setdefault(group, Counter())[kind] += 1

    def of(self, path: str) -> Counts:
        """What the groups hold of the module or parameter of that name, and of all in it."""
        return self._parts.get(path, {})

    def around(self, paths: Iterable[str]) -> Counts:
        """The same of several together."""
        found: dict[Group, Counter[str]] = {}
        for path in paths:
            for group, kinds in self.of(path).items():
                found.setdefault(group, Counter()).update(kinds)
        return found

    def is_empty(self, group: Group) -> bool:
        """Whether a group holds nothing but parameters of seeds."""
        return group not in self._occupied

    def groups(self) -> Iterator[Group]:
        """All of them."""
        for number, sizes in enumerate(self._sizes):
            yield from ((number, place) for place in range(len(sizes)))

    @property
    def is_current(self) -> bool:
        """Whether the groups are as large as those that were counted."""
        return self._sizes == [
            [len(group["params"]) for group in shared_groups(optimizer)] for optimizer in self._optimizers
        ]

    def changed(self, group: Group, by: int) -> None:
        """So many parameters of seeds came into a group, or left it."""
        number, place = group
        self._sizes[number][place] += by


def _members(optimizers: Sequence[Optimizer]) -> Iterator[tuple[Group, list[nn.Parameter]]]:
    for number, optimizer in enumerate(optimizers):
        for place, group in enumerate(shared_groups(optimizer)):
            yield (number, place), group["params"]


def _upwards(path: str) -> Iterator[str]:
    """A module's name and those of the modules around it, the whole model's (empty) last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
