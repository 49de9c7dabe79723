"""The configuration with which a model's class makes the sizes that a grown one has.

transformers' models are made from a configuration, which is written beside their weights. Which of its
numbers are others in a model that grew wider is found by trying: the class is instantiated without data, and
numbers are changed one by one, and then in pairs, as long as fewer tensors have another shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import nn

_Shapes = Mapping[str, tuple[int, ...]]
MOST_TRIES = 400
"""Instantiations without data."""


def configuration_for(kind: type[nn.Module], root: nn.Module) -> Any:
    """A copy of ``root.config`` with which ``kind`` makes the shapes and the numbers of ``root``; or None.

    Args:
        kind: the class of the model that was traced.
        root: the grown one, as a plain module.
    """
    config = root.__dict__.get("config")
    if config is None or not callable(getattr(config, "to_dict", None)):
        return None
    wanted = {name: tuple(tensor.shape) for name, tensor in root.state_dict().items()}
    search = _Search(kind, wanted)
    found = search.run(config)
    return None if found is None else _with_numbers(kind, found, root)


class _Search:
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

    def _off(self, config: Any) -> int | None:
        """How many tensors have another shape; None where there is no such model."""
        if self._left <= 0:
            return None
        self._left -= 1
        made = _made(self._kind, config)
        if made is None:
            return None
        shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
        if shapes.keys() != self._wanted.keys():
            return None
        return sum(shapes[name] != shape for name, shape in self._wanted.items())

    def _candidates(self, config: Any) -> Iterator[dict[str, int]]:
        made = _made(self._kind, config)
        if made is None:
            return
        shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
        pairs = {
            (before, after)
            for name, shape in self._wanted.items()
            for before, after in zip(shapes.get(name, shape), shape, strict=False)
            if before != after
        }
        sizes = sorted({after for _, after in pairs})
        ratios = {after / before for before, after in pairs}
        single: list[dict[str, int]] = []
        for name, value in config.to_dict().items():
            if type(value) is int and value > 0:
                grown = {round(value * ratio) for ratio in ratios if value * ratio == int(value * ratio)}
                single += [{name: size} for size in dict.fromkeys((*sizes, *sorted(grown))) if size != value]
            elif value is None and name.endswith(("inner", "dim", "size")):
                single += [{name: size} for size in sizes]
        yield from single
        own = [one for one in single if type(getattr(config, next(iter(one)))) is int]
        yield from ({**a, **b} for a, b in combinations(own, 2) if a.keys() != b.keys())


def _changed(config: Any, changes: Mapping[str, Any]) -> Any:
    made = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def _made(kind: Callable[..., nn.Module], config: Any) -> nn.Module | None:
    try:
        with torch.device("meta"):
            return kind(copy.deepcopy(config))
    except Exception:  # numbers that do not go together
        return None


def _with_numbers(kind: type[nn.Module], config: Any, root: nn.Module) -> Any:
    """The configuration with the plain numbers (eps, how many heads) that the modules have, or None."""
    there = dict(root.named_modules())
    different = _different(kind, config, there)
    while different:
        for before, after in dict.fromkeys(different):
            names = [n for n, v in config.to_dict().items() if type(v) is type(before) and v == before]
            tried = [_changed(config, {name: after}) for name in names]
            better = next((one for one in tried if _fewer(_different(kind, one, there), different)), None)
            if better is not None:
                config, different = better, _different(kind, better, there)
                break
        else:
            return None
    return None if different is None else config


_Numbers = list[tuple[Any, Any]]


def _fewer(now: _Numbers | None, before: _Numbers) -> bool:
    return now is not None and len(now) < len(before)


def _different(kind: type[nn.Module], config: Any, there: Mapping[str, nn.Module]) -> _Numbers | None:
    """Numbers that modules of such a model have, and those that they are to have; None: there is no such."""
    made = _made(kind, config)
    if made is None:
        return None
    found = []
    for path, module in made.named_modules():
        other = {} if path not in there else vars(there[path])
        for name, value in vars(module).items():
            now = other.get(name)
            if type(value) in (int, float) and type(now) is type(value) and now != value:
                found.append((value, now))
    return found
