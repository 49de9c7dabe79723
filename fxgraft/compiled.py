"""``torch.compile`` without recompiles: one compiled entry for each structure and phase.

Dynamo keeps what it compiled per code object, looks through it by guards, and falls back to eager
silently after eight. Each variant of a host therefore enters through a code object of its own: a
swap of structures picks another entry and evaluates no guards of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.capture.call_form import is_constant
from fxgraft.structure import Structure
from fxgraft_passes import Phase
from fxgraft_passes.untouched import untouched


class CompiledVariants:
    """The compiled entries of one host, and the kinds of call that they have to be ready for."""

    def __init__(self, root: nn.Module, options: dict[str, Any]):
        self._options = {"fullgraph": True, **options}
        self._root = root
        self._entries: dict[tuple[object, Phase], Callable[..., Any]] = {}
        self._ready: dict[tuple[object, Phase], set[CallKind]] = {}
        self._seen: dict[CallKind, None] = {}

    def variant(self, structure: Structure, phase: Phase) -> Callable[..., Any]:
        """What runs the host while it has ``structure`` in ``phase``."""
        key = (structure.key, phase)
        if key not in self._entries:
            self._entries[key] = torch.compile(_own_code(_enter), **self._options)
            self._ready[key] = set()
        entry, ready = self._entries[key], self._ready[key]

        def run(*args: Any, **kwargs: Any) -> Any:
            kind = CallKind.of(self._root, args, kwargs)
            if kind is not None and kind not in ready:
                ready.add(kind)
                self._seen[kind] = None
            return entry(self._root, *args, **kwargs)

        return run

    def warm_up(self, structure: Structure, phase: Phase, seeds: nn.Module | None = None) -> None:
        """Compile the variant that is installed now for every kind of call that was seen before.

        Forward and backward run on made-up inputs; weights, gradients, buffers and random streams
        are left alone.
        """
        key = (structure.key, phase)
        for kind in [kind for kind in self._seen if kind not in self._ready[key]]:
            with untouched(self._root, *([seeds] if seeds else [])):
                kind.call(self._root, seeds, self._entries[key])
            self._ready[key].add(kind)


@dataclass(frozen=True)
class CallKind:
    """What a compiled graph depends on in a call, beside the structure."""

    training: bool
    grad: bool
    autocast: tuple[str, torch.dtype] | None
    form: pytree.TreeSpec
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallKind | None:
        """The kind of a call; None where it cannot be made up again."""
        leaves, form = pytree.tree_flatten((args, kwargs))
        kinds = tuple(map(_kind, leaves))
        if _Unknown in kinds:
            return None
        return cls(root.training, torch.is_grad_enabled(), _autocast(leaves), form, kinds)

    def call(self, root: nn.Module, seeds: nn.Module | None, entry: Callable[..., Any]) -> None:
        """Run ``entry`` forward, and backward where gradients are enabled, in a call of this kind."""
        args, kwargs = pytree.tree_unflatten([_example(leaf) for leaf in self.leaves], self.form)
        if root.training != self.training:
            for module in filter(None, (root, seeds)):
                module.train(self.training)
        device, dtype = self.autocast or ("cpu", None)
        with (
            torch.set_grad_enabled(self.grad),
            torch.autocast(device, dtype=dtype, enabled=self.autocast is not None),
        ):
            out = entry(root, *args, **kwargs)
        learned = [p for m in filter(None, (root, seeds)) for p in m.parameters() if p.requires_grad]
        outputs = [o for o in pytree.tree_leaves(out) if isinstance(o, Tensor) and o.requires_grad]
        if self.grad and outputs and learned:
            zeros = [torch.zeros_like(o) for o in outputs]
            torch.autograd.grad(outputs, learned, zeros, allow_unused=True)


def _enter(root: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return root(*args, **kwargs)


def _own_code(function: Any) -> Callable[..., Any]:
    """The function over a code object of its own."""
    copy = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@dataclass(frozen=True)
class _TensorKind:
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool


class _Unknown:
    """Stands for an argument that cannot be made up."""


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        if leaf.layout is not torch.strided:
            return _Unknown
        return _TensorKind(leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad)
    return leaf if is_constant(leaf) and not isinstance(leaf, (list, tuple)) else _Unknown


def _example(kind: Any) -> Any:
    if not isinstance(kind, _TensorKind):
        return kind
    # Zeros: a valid index into any embedding, a finite value anywhere.
    made = torch.empty_strided(kind.shape, kind.stride, dtype=kind.dtype, device=kind.device)
    return made.zero_().requires_grad_(kind.requires_grad)


def _autocast(leaves: list[Any]) -> tuple[str, torch.dtype] | None:
    device = next((leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)), "cpu")
    if not torch.is_autocast_enabled(device):
        return None
    return device, torch.get_autocast_dtype(device)
