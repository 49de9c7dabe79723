"""Which module reads what another one returned, as seen in the example run.

    h = self.blocks[0](x)
    h = self.blocks[1](h)      # `blocks.1` reads, as its ``x``, the very tensor that `blocks.0` returned

So blocks that run one after the other are known as such, also where code without a graph calls them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import BoundArguments
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

BLOCKS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules of torch's own that are blocks of a stack: their code has no graph, their boundary is known."""


@dataclass(frozen=True)
class ExampleRun:
    """How a module ran in the example call.

    Attributes:
        calls: how often.
        order: of its first call among those of all modules.
        follows: the qualified names of modules whose results it read -> the parameters by which it did.
        element: which tensor of its result was read so by others; of one that is a tensor, 0.
        returns: the type of its result.
    """

    calls: int
    order: int
    follows: Mapping[str, tuple[str, ...]]
    element: int | None
    returns: str


class DataFlow:
    """Sees the calls of one run. Tensors are compared by identity, so nothing may copy them on the way."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], list[tuple[nn.Module, int]]]] = {}
        self._calls: Counter[nn.Module] = Counter()
        self._follows: dict[nn.Module, dict[nn.Module, list[str]]] = {}
        self._elements: dict[nn.Module, set[int]] = {}
        self._returns: dict[nn.Module, str] = {}

    def called(self, module: nn.Module, bound: BoundArguments) -> None:
        """``module`` is called with these arguments."""
        self._calls[module] += 1
        found = self._follows.setdefault(module, {})
        for name, value in bound.arguments.items():
            if not isinstance(value, torch.Tensor):
                continue
            known, makers = self._made.get(id(value), (None, []))
            if known is None or known() is not value:
                continue
            for maker, element in makers:
                found.setdefault(maker, []).append(name)
                self._elements.setdefault(maker, set()).add(element)

    def returned(self, module: nn.Module, result: Any) -> None:
        """``module`` has returned that."""
        self._returns[module] = type(result).__name__ if isinstance(result, (tuple, list)) else "value"
        if isinstance(result, torch.Tensor):
            self._returns[module] = "Tensor"
        for i, leaf in enumerate(result if isinstance(result, (tuple, list)) else pytree.tree_leaves(result)):
            if isinstance(leaf, torch.Tensor):
                known, makers = self._made.get(id(leaf), (None, []))
                if known is None or known() is not leaf:
                    makers = []
                self._made[id(leaf)] = weakref.ref(leaf), [*makers, (module, i)]

    def runs(self, modules: Mapping[str, nn.Module]) -> dict[str, ExampleRun]:
        """What was seen of these modules, by their names."""
        names = {module: name for name, module in modules.items()}
        order = {module: i for i, module in enumerate(self._calls)}
        return {
            name: ExampleRun(
                self._calls[module],
                order[module],
                {names[m]: tuple(found) for m, found in self._follows[module].items() if m in names},
                next(iter(elements)) if len(elements := self._elements.get(module, set())) == 1 else None,
                self._returns.get(module, "nothing"),
            )
            for name, module in modules.items()
            if module in self._calls
        }
