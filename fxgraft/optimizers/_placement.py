"""The rule for the optimizer group of a seed's parameter: that of the layers around its slot.

The nearest layers that some group which can train the parameter holds say whose it is (its *home*). Of which
kind it is decides among the groups there:

1. the group that holds most of the parameters of that kind in these layers;
2. else, a little further from the slot, the group that holds most of that kind, where the home holds what is
   alike to its own there, and no other group does: the groups are divided by kinds there, not by places;
3. else a home group that holds that kind elsewhere in the model;
4. else its counterpart: a group that differs from it by nothing but the weight decay, and holds that kind;
5. else as 2, where no other group holds what is of the very kinds of the home;
6. all of these again, with the kind nearest to it (biases and norms are alike, and matrices and embeddings);
7. else a group that holds nothing yet: the counterpart of a home group, or the only one of its optimizer;
8. else the home.

So with two learning rates for body and head a seed behind the head has that of the head, whatever its kinds;
with and without weight decay its matrices are decayed and its biases are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from torch.optim import Optimizer

from fxgraft.optimizers.group_index import ALIKE, MATRIX, Counts, Group, GroupIndex, shared_groups
from fxgraft.optimizers.groups import are_counterparts


def choose(
    kind: str,
    rings: Iterable[Sequence[str]],
    group_index: GroupIndex,
    optimizers: Sequence[Optimizer],
    can_train: Callable[[Group], bool],
) -> Group | None:
    """The group for a parameter; None if no group can train it.

    Args:
        kind: one of ``kinds``.
        rings: names of the modules and parameters around its slot, nearest first.
        group_index: of the groups.
        optimizers: those of the group_index.
        can_train: whether a group may be chosen.
    """
    waiting = list(rings)
    while waiting:
        ring = waiting.pop(0)
        if home := {g: kinds for g, kinds in group_index.around(ring).items() if can_train(g)}:
            further = [group_index.around(other) for other in waiting if _is_around(other, ring)]
            return _Choice(kind, home, further, group_index, optimizers, can_train).of_home()
    return _anywhere(kind, group_index, optimizers, can_train)


def _is_around(ring: Sequence[str], layers: Sequence[str]) -> bool:
    """Whether it is a module around all of these layers: readers of the value may be of another place."""
    return all(
        path == module or not module or path.startswith(f"{module}.") for module in ring for path in layers
    )


class _Choice:
    def __init__(
        self,
        kind: str,
        home: Counts,
        further: Sequence[Counts],
        group_index: GroupIndex,
        optimizers: Sequence[Optimizer],
        can_train: Callable[[Group], bool],
    ):
        self._kind, self._nearest, self._further = kind, home, further
        self._group_index, self._can_train = group_index, can_train
        self._optimizers = optimizers
        alike = ALIKE[kind]
        self._home = sorted(home, key=lambda g: (-_number(home[g], alike), -home[g].total()))

    def of_home(self) -> Group:
        for kinds in ((self._kind,), ALIKE[self._kind]):
            for found in (
                _most(self._nearest, kinds),
                self._by_kinds_there(kinds, exactly=False),
                next((g for g in self._home if self._holds(g, kinds)), None),
                next((g for g in self._counterparts() if self._holds(g, kinds)), None),
                self._by_kinds_there(kinds, exactly=True),
            ):
                if found is not None:
                    return found
        return self._empty() or self._home[0]

    def _holds(self, group: Group, kinds: Collection[str]) -> bool:
        return _number(self._group_index.of("").get(group, Counter()), kinds) > 0

    def _counterparts(self) -> Iterator[Group]:
        for number, place in self._home:
            ours = shared_groups(self._optimizers[number])
            defaults = getattr(self._optimizers[number], "defaults", {})
            for other, group in enumerate(ours):
                is_one = other != place and are_counterparts(ours[place], group, defaults)
                if is_one and self._can_train((number, other)):
                    yield number, other

    def _by_kinds_there(self, kinds: Collection[str], exactly: bool) -> Group | None:
        """Rules 2 and 5."""
        near = {kind for counts in self._nearest.values() for kind in counts}
        of_home = near if exactly else {alike for kind in near for alike in ALIKE[kind]}
        for counts in self._further:
            if any(_number(found, of_home) for group, found in counts.items() if group not in self._nearest):
                return None
            is_home = any(_number(counts.get(group, Counter()), of_home) for group in self._nearest)
            able = {group: found for group, found in counts.items() if self._can_train(group)}
            if is_home and (found := _most(able, kinds)) is not None:
                return found
        return None

    def _empty(self) -> Group | None:
        """Rule 7."""
        counterparts = [g for g in self._counterparts() if self._group_index.is_empty(g)]
        if counterparts:
            return _by_decay(self._kind, counterparts, self._optimizers)
        for number in dict.fromkeys(number for number, _ in self._home):
            ours = [group for group in self._group_index.groups() if group[0] == number]
            empty = [group for group in ours if self._group_index.is_empty(group)]
            is_held = any(self._holds(group, ALIKE[self._kind]) for group in ours)
            if len(empty) == 1 and not is_held and self._can_train(empty[0]):
                return _by_decay(self._kind, [*empty, self._home[0]], self._optimizers)
        return None


def _anywhere(
    kind: str, group_index: GroupIndex, optimizers: Sequence[Optimizer], can_train: Callable[[Group], bool]
) -> Group | None:
    """Where no group of the layers around can train it: the one that holds most of its kind, or nothing."""
    every = [group for group in group_index.groups() if can_train(group)]
    held = {group: group_index.of("").get(group, Counter()) for group in every}
    for kinds in ((kind,), ALIKE[kind]):
        if (found := _most(held, kinds)) is not None:
            return found
    empty = [group for group in every if group_index.is_empty(group)]
    return _by_decay(kind, empty, optimizers) if empty else next(iter(every), None)


def _most(counts: Counts, kinds: Collection[str]) -> Group | None:
    """The group with most parameters of these kinds, the first of several; None if none has one."""
    found = max(counts, key=lambda group: _number(counts[group], kinds), default=None)
    return found if found is not None and _number(counts[found], kinds) else None


def _number(counts: Counter[str], kinds: Collection[str]) -> int:
    return sum(counts[kind] for kind in kinds)


def _by_decay(kind: str, groups: Sequence[Group], optimizers: Sequence[Optimizer]) -> Group:
    """Matrices are decayed, vectors are not: of groups that nothing else tells apart."""
    sign = 1 if ALIKE[kind] == ALIKE[MATRIX] else -1

    def decay(group: Group) -> float:
        return sign * float(shared_groups(optimizers[group[0]])[group[1]].get("weight_decay", 0))

    return max(groups, key=decay)
