"""The configuration with which a model's class makes the sizes that a grown one has.

transformers' models are made from a configuration, which is written beside their weights. Which of its
numbers are others in a model that grew wider is found by trying: the class is instantiated without data, and
numbers are changed one by one, and then in pairs, as long as fewer tensors have another shape. What has all
the shapes is given the weights, and has to compute the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, islice
from typing import Any

import torch
from torch import nn

_Shapes = dict[str, tuple[int, ...]]
_Changes = Mapping[str, Any]

MOST_TRIES = 400
"""Instantiations without data."""

MOST_RUNS = 12
"""Configurations with the right shapes of which it is seen whether they compute the same."""


def configuration_for(root: nn.Module, proves: Callable[[nn.Module], bool]) -> Any:
    """A copy of ``root.config`` with which its class makes a model that computes what ``root`` does; or None.

    Args:
        root: a model that grew, as a plain module.
        proves: whether a module with its weights computes the same.
    """
    config = root.__dict__.get("config")
    if config is None or not callable(getattr(config, "to_dict", None)):
        return None
    search = _ConfigurationSearch(type(root), _shapes_of(root))
    found = search.run(config)
    if found is None:
        return None
    before = _made(type(root), config)
    for further in islice(search.alike(found), MOST_RUNS):
        tried = _changed(further, _small_numbers(further, before, root))
        made = _made(type(root), tried)
        if made is not None and proves(_with_tensors_of(root, made)):
            return tried
    return None


class _ConfigurationSearch:
    """For a configuration by the shapes that it makes.

    Args:
        kind: the class.
        wanted: the shapes.
    """

    def __init__(self, kind: type[nn.Module], wanted: _Shapes):
        self._kind, self._wanted, self._left = kind, wanted, MOST_TRIES

    def run(self, config: Any) -> Any:
        """A configuration with these shapes; None where none was found."""
        best, off = config, self._off(config)
        while off:
            for changes in self._candidates(best):
                further = _changed(best, changes)
                if (less := self._off(further)) is not None and less < off:
                    best, off = further, less
                    break
            else:
                return None
        return None if off is None else best

    def alike(self, found: Any) -> Iterator[Any]:
        """``found``, and what makes the same shapes with one whole number more or less: of heads, say."""
        yield found
        sizes = sorted({size for shape in self._wanted.values() for size in shape})
        for name, value in found.to_dict().items():
            if type(value) is int and 1 < value <= max(sizes):
                for other in range(1, 4 * value + 1):
                    further = _changed(found, {name: other})
                    if (
                        other != value
                        and any(size % other == 0 for size in sizes)
                        and self._off(further) == 0
                    ):
                        yield further

    def _off(self, config: Any) -> int | None:
        """How many tensors have another shape; None where there is no such model."""
        if self._left <= 0:
            return None
        self._left -= 1
        made = _made(self._kind, config)
        if made is None or (shapes := _shapes_of(made)).keys() != self._wanted.keys():
            return None
        return sum(shapes[name] != shape for name, shape in self._wanted.items())

    def _candidates(self, config: Any) -> Iterator[_Changes]:
        made = _made(self._kind, config)
        if made is None:
            return
        shapes = _shapes_of(made)
        pairs = {
            (before, after)
            for name, shape in self._wanted.items()
            for before, after in zip(shapes.get(name, shape), shape, strict=False)
            if before != after
        }
        sizes = sorted({after for _, after in pairs})
        single: list[_Changes] = []
        for name, value in config.to_dict().items():
            if type(value) is int and value > 0:
                grown = {value * after // before for before, after in pairs if value * after % before == 0}
                single += [{name: size} for size in dict.fromkeys((*sizes, *sorted(grown))) if size != value]
            elif value is None and name.endswith(("inner", "dim", "size")):
                single += [{name: size} for size in sizes]
        yield from single
        own = [one for one in single if getattr(config, next(iter(one))) is not None]
        yield from ({**a, **b} for a, b in combinations(own, 2) if a.keys() != b.keys())


def _shapes_of(module: nn.Module) -> _Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _changed(config: Any, changes: _Changes) -> Any:
    made = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def _made(kind: type[nn.Module], config: Any) -> nn.Module | None:
    """A model without data; None where the numbers of the configuration do not go together."""
    try:
        with torch.device("meta"):
            return kind(copy.deepcopy(config))
    except Exception:
        return None


def _small_numbers(config: Any, before: nn.Module | None, root: nn.Module) -> _Changes:
    """The numbers with a point (the eps of norms) that are others since ``root`` grew."""
    found: dict[str, Any] = {}
    there = dict(root.named_modules())
    for path, module in before.named_modules() if before is not None else ():
        for name, value in vars(module).items():
            now = vars(there[path]).get(name) if path in there else value
            if type(value) is float and type(now) is float and now != value:
                found |= {
                    key: now for key, old in config.to_dict().items() if type(old) is float and old == value
                }
    return found


def _with_tensors_of(root: nn.Module, made: nn.Module) -> nn.Module:
    """``made``, with the parameters and buffers of ``root``, those that are not saved among them."""
    there = dict(root.named_modules())
    for path, module in made.named_modules():
        other = there.get(path)
        for register in ("_parameters", "_buffers"):
            own = getattr(module, register)
            own.update({n: t for n, t in getattr(other, register, {}).items() if n in own})
    return made
