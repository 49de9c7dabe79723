"""Which groups hold what of which part of a model: how many parameters of each kind, counted once.

A germination asks for some parts; it must not walk through a large model. What is counted stays right while
seeds come and go, and is counted again when other code has changed the groups. People divide optimizers and
their groups by these kinds:

=============  =========================================================================
``matrix``     two dimensions or more: weights of linear layers, convolutions
``embedding``  the same of an ``nn.Embedding``
``vector``     fewer dimensions: biases, gates, scales
``norm``       the same of a normalisation layer
=============  =========================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.optimizers.groups import OWNER

MATRIX, EMBEDDING, VECTOR, NORM = "matrix", "embedding", "vector", "norm"
ALIKE = {kind: alike for alike in ((MATRIX, EMBEDDING), (VECTOR, NORM)) for kind in alike}
"""Kind -> the kinds that are nearest to it, itself included."""

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def kind_of(module: nn.Module, parameter: Tensor) -> str:
    """The kind of a parameter that ``module`` itself holds."""
    if parameter.dim() >= 2:
        return EMBEDDING if isinstance(module, _EMBEDDINGS) else MATRIX
    # Many models bring a norm of their own: LlamaRMSNorm, Qwen2RMSNorm, LayerNorm2d.
    is_norm = isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()
    return NORM if is_norm else VECTOR


def kinds_in(module: nn.Module) -> dict[str, tuple[nn.Parameter, str]]:
    """Name -> parameter and kind, of all that are trainable in ``module``, each once."""
    found: dict[str, tuple[nn.Parameter, str]] = {}
    seen: set[int] = set()
    for path, part in module.named_modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{path}.{name}" if path else name] = parameter, kind_of(part, parameter)
    return found


Group = tuple[int, int]
"""The number of an optimizer among the manager's, and of a group among those of it that are no seed's own."""

Counts = Mapping[Group, Counter[str]]
"""Group -> how many parameters of each kind it holds, in the order in which they occur."""


def shared_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups that are no seed's own."""
    return [group for group in optimizer.param_groups if OWNER not in group]


def groups_with(optimizers: Iterable[Optimizer], parameter: nn.Parameter) -> Iterator[dict[str, Any]]:
    """The groups that hold a parameter; none for one that they do not train."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(known is parameter for known in group["params"]):
                yield group


class GroupIndex:
    """What the groups of some optimizers hold of a model.

    Args:
        model: without seeds.
        optimizers: in the order of their numbers.
        of_seeds: the ids of the live seeds' parameters, which are not counted.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], of_seeds: Collection[int]):
        self._optimizers = optimizers
        self._parts: dict[str, dict[Group, Counter[str]]] = {}
        self._sizes = _sizes(optimizers)
        where = {
            id(parameter): (parameter, group)
            for group, parameters in _members(optimizers)
            for parameter in parameters
            if id(parameter) not in of_seeds
        }
        self._occupied = {group for _, group in where.values()}
        counted: set[int] = set()
        for path, module in model.named_modules(remove_duplicate=False):
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in where:
                    counted.add(id(parameter))
                    whole = f"{path}.{name}" if path else name
                    self._count((whole, *_upwards(path)), where[id(parameter)][1], kind_of(module, parameter))
        for key in where.keys() - counted:  # of fossils, of other models: they tell what a group is for
            parameter, group = where[key]
            self._count([""], group, MATRIX if parameter.dim() >= 2 else VECTOR)

    def _count(self, parts: Iterable[str], group: Group, kind: str) -> None:
        for part in parts:
            self._parts.setdefault(part, {}).setdefault(group, Counter())[kind] += 1

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
        """All groups."""
        for number, optimizer in enumerate(self._optimizers):
            yield from ((number, place) for place in range(len(shared_groups(optimizer))))

    @property
    def is_current(self) -> bool:
        """Whether the groups are as large as those that were counted, or `accept` saw them."""
        return self._sizes == _sizes(self._optimizers)

    def accept(self) -> None:
        """Parameters of seeds came or went, which changes nothing of what is counted."""
        self._sizes = _sizes(self._optimizers)


def _sizes(optimizers: Sequence[Optimizer]) -> list[list[int]]:
    return [[len(group["params"]) for group in shared_groups(optimizer)] for optimizer in optimizers]


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
