"""``torch.compile`` without recompiles: one compiled entry for each structure and phase.

Dynamo keeps what it compiled per code object, looks through it by guards, and falls back to eager
silently after eight. Each variant of a host therefore enters through a code object of its own: a
swap of structures picks another entry and evaluates no guards of the others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.capture.call_form import is_constant
from fxgraft.structure import Structure
from fxgraft_passes import Phase
from fxgraft_passes.untouched import untouched

K = TypeVar("K")
V = TypeVar("V")

MAX_VARIANTS = 64
"""How many variants a host keeps compiled; the one that ran the longest time ago goes first."""
MAX_KINDS = 8
"""For how many kinds of call (the latest) a new structure is compiled before it is live."""


class CompiledVariants:
    """The compiled entries of one host, and the kinds of call that they have to be ready for."""

    def __init__(self, root: nn.Module, options: dict[str, Any]):
        self._options = {"fullgraph": True, **options}
        self._root = root
        self._variants: OrderedDict[tuple[object, Phase], _Variant] = OrderedDict()
        self._seen: OrderedDict[CallKind, None] = OrderedDict()

    def variant(self, structure: Structure, phase: Phase) -> Callable[..., Any]:
        """What runs the host while it has ``structure`` in ``phase``."""
        variant = self._find((structure.key, phase))

        root, known, entry = self._root, variant.known, variant.entry

        def run(*args: Any, **kwargs: Any) -> Any:
            # In front of every step of a compiled host: nothing but a look at the arguments' forms.
            glance = _glance(root, args) if not kwargs else None
            if glance is None or glance not in known:
                self._note(variant, args, kwargs)
                known.add(glance)
            return entry(root, *args, **kwargs)

        return run

    def _note(self, variant: _Variant, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kind = CallKind.of(self._root, args, kwargs)
        if kind is not None and kind not in variant.ready:
            variant.ready.add(kind)
            _touch(self._seen, kind, None, MAX_KINDS)

    def _find(self, key: tuple[object, Phase]) -> _Variant:
        variant = self._variants.get(key)
        if variant is None:
            variant = _Variant(torch.compile(_own_code(_enter), **self._options))
        return _touch(self._variants, key, variant, MAX_VARIANTS)

    def warm_up(self, structure: Structure, phase: Phase, seeds: nn.Module | None = None) -> None:
        """Compile the variant that is installed now for every kind of call that was seen before.

        Forward and backward run on made-up inputs; weights, gradients, buffers and random streams
        are left alone.
        """
        variant = self._find((structure.key, phase))
        for kind in [kind for kind in self._seen if kind not in variant.ready]:
            with untouched(self._root, *([seeds] if seeds else [])):
                kind.call(self._root, seeds, variant.entry)
            variant.ready.add(kind)


@dataclass(frozen=True)
class _Variant:
    """A compiled entry, the kinds of call that it was compiled for, and what calls looked like."""

    entry: Callable[..., Any]
    ready: set[CallKind] = field(default_factory=set)
    known: set[object] = field(default_factory=set)


def _glance(root: nn.Module, args: tuple[Any, ...]) -> object:
    """A cheap key for a call with plain tensors only; None for any other call."""
    forms = []
    for arg in args:
        if type(arg) is not Tensor:
            return None
        forms.append((arg.shape, arg.stride(), arg.dtype, arg.device, arg.requires_grad))
    return (root.training, torch.is_grad_enabled(), _autocast(args), *forms)


def _touch(table: OrderedDict[K, V], key: K, value: V, most: int) -> V:
    """Make ``key`` the newest of ``table``, and let the oldest go where there are too many."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > most:
        table.popitem(last=False)
    return value


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


def _autocast(leaves: Sequence[Any]) -> tuple[str, torch.dtype] | None:
    device = next((leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)), "cpu")
    if not torch.is_autocast_enabled(device):
        return None
    return device, torch.get_autocast_dtype(device)
