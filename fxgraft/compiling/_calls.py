"""What a compiled graph depends on in a call, beside the structure; and how to generate such a call."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft import _torch
from fxgraft.capture.call_form import is_constant
from fxgraft.compiling._opened import opened
from fxgraft_passes import _torch as _torch_of_passes
from fxgraft_passes import devices

_NUMBERS = (int, float)
_PLAIN = (bool, *_NUMBERS, str, type(None))


def call_key(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], numbers_vary: bool = False
) -> object:
    """A cheap key for a call of plain tensors and constants; None for any other call.

    Args:
        module: that is called.
        args: positional arguments.
        kwargs: keyword arguments.
        numbers_vary: whether integers and floats are distinguished by their type only.
    """
    # In front of each step of a compiled host: as few functions as can be, as their code is cold by then.
    if (default_devices := _torch_of_passes.default_devices()) is None:
        return None
    forms: list[object] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if type(value) is Tensor:
            forms.append((value.shape, value.stride(), value.dtype, value.device, value.requires_grad))
        elif numbers_vary and type(value) in _NUMBERS:
            forms.append(type(value))
        elif type(value) in _PLAIN:
            forms.append((type(value), value))
        else:
            return None
    # The number of values gives that of args: the names say how many came by keyword.
    world = (module.training, torch.is_grad_enabled(), devices.autocasts(), default_devices)
    return (*world, *kwargs, *forms)


@dataclass(frozen=True)
class CallKind:
    """One kind of call: calls that are equal here run the same compiled graph.

    Attributes:
        training: the module's mode.
        grad: whether gradients are enabled.
        autocasts: what autocast was on, for any type of device.
        default_devices: what tensors that are made without a device are on, where that was set.
        form: of the arguments.
        leaves: constants, numbers that vary, and what there is to know of tensors.
    """

    training: bool
    grad: bool
    autocasts: devices.Autocasts
    default_devices: _torch_of_passes.DefaultDevices
    form: pytree.TreeSpec
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallKind | None:
        """The kind of a call; None where it cannot be made again."""
        leaves, form = pytree.tree_flatten(opened((args, kwargs)))
        kinds = tuple(map(_kind, leaves))
        default_devices = _torch_of_passes.default_devices()
        if _Unknown in kinds or default_devices is None:
            _not_again[module] = _why_not_again(args, kwargs)
            return None
        grad, autocasts = torch.is_grad_enabled(), devices.autocasts()
        return cls(module.training, grad, autocasts, default_devices, form, kinds)

    @property
    def trains(self) -> bool:
        """Whether it is a call of the training loop."""
        return self.training and self.grad

    def merged(self, other: CallKind) -> CallKind | None:
        """The kind of both, with sizes and numbers that differ made dynamic; None where more differs."""
        if replace(self, leaves=()) != replace(other, leaves=()):
            return None
        leaves = tuple(_merged(a, b) for a, b in zip(self.leaves, other.leaves))
        return None if _Unknown in leaves else replace(self, leaves=leaves)

    @property
    def numbers_vary(self) -> bool:
        """Whether a number is dynamic."""
        return any(isinstance(leaf, _Number) for leaf in self.leaves)

    def with_numbers_of(self, other: CallKind) -> CallKind | None:
        """The kind of both, where they differ in numbers only; None otherwise."""
        if len(self.leaves) != len(other.leaves) or any(
            isinstance(a, _TensorKind) and a != b for a, b in zip(self.leaves, other.leaves, strict=True)
        ):
            return None
        return self.merged(other)

    def without_gradients(self) -> CallKind:
        """Such a call by tensors that need no gradient."""
        leaves = [replace(k, requires_grad=False) if isinstance(k, _TensorKind) else k for k in self.leaves]
        return replace(self, leaves=tuple(leaves))

    def resized(self, sizes: Mapping[tuple[int, ...], tuple[int, ...]]) -> CallKind:
        """Such a call by tensors of other sizes.

        Args:
            sizes: shapes in some call -> what they are in it now; the dimensions that differ are set in
                tensors that have the former size there.
        """
        return replace(self, leaves=tuple(_resized(leaf, sizes) for leaf in self.leaves))

    @property
    def family(self) -> object:
        """Equal for kinds that differ in sizes and numbers only."""
        return replace(self, leaves=tuple(map(_without_sizes, self.leaves)))

    @contextmanager
    def example_call(self, *modules: nn.Module) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Arguments for such a call, with the mode of ``modules``, gradients and autocast as in one."""
        args, kwargs = pytree.tree_unflatten(
            [_example(leaf, is_static=self.numbers_vary) for leaf in self.leaves], self.form
        )
        # The compiler takes numbers for constants, unless it takes nothing for constant that is not marked.
        dynamic = _torch.nothing_is_static()
        with (
            _mode(modules, self.training),
            self.surroundings(),
            dynamic if self.numbers_vary else nullcontext(),
        ):
            yield args, kwargs

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Gradients, autocast and default devices as in such a call."""
        with (
            torch.set_grad_enabled(self.grad),
            devices.under_autocasts(self.autocasts),
            _torch_of_passes.default_devices_are(self.default_devices),
        ):
            yield


_not_again: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def why_not_again(module: nn.Module) -> str | None:
    """Why a call of ``module`` could not be generated, where it had one such; the latest."""
    return _not_again.get(module)


def _why_not_again(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    named = ((repr(name), value) for name, value in kwargs.items())
    for place, value in (*enumerate(args), *named):
        for leaf in pytree.tree_leaves(opened(value)):
            if _kind(leaf) is _Unknown:
                is_tensor = isinstance(leaf, Tensor)
                what = f"a tensor of layout {leaf.layout}" if is_tensor else type(leaf).__name__
                return f"argument {place} is, or holds, {what}"
    return "a TorchFunctionMode is on"


def merge(kinds: Iterable[CallKind]) -> list[CallKind]:
    """As few kinds as cover all: those that differ in sizes and numbers become one, with these dynamic."""
    merged: list[CallKind] = []
    for kind in kinds:
        for i, other in enumerate(merged):
            if (both := other.merged(kind)) is not None:
                merged[i] = both
                break
        else:
            merged.append(kind)
    return merged


def covers(made: CallKind, kind: CallKind) -> bool:
    """Whether code that was made for ``made`` serves calls of ``kind``: equal but for what is dynamic."""
    return made == kind or made.merged(kind) == made


@contextmanager
def _mode(modules: Sequence[nn.Module], training: bool) -> Iterator[None]:
    """Train or eval mode inside; each module is back in its own afterwards (some may differ)."""
    changed = [module for module in modules if module.training != training]
    before = [(part, part.training) for module in changed for part in module.modules()]
    for module in changed:
        module.train(training)
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


@dataclass(frozen=True)
class _TensorKind:
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    dynamic: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Number:
    """A number that varies from call to call; ``example`` is one of them."""

    type: type
    example: int | float = field(compare=False)


class _Unknown:
    """The place of an argument that cannot be generated."""


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        if leaf.layout is not torch.strided:
            return _Unknown
        return _TensorKind(leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad)
    return leaf if is_constant(leaf) and not isinstance(leaf, (list, tuple)) else _Unknown


def _merged(a: Any, b: Any) -> Any:
    if not (isinstance(a, _TensorKind) and isinstance(b, _TensorKind)):
        return _merged_constants(a, b)
    if a == b:
        return a
    alike = replace(b, shape=a.shape, stride=a.stride, dynamic=a.dynamic) == a
    if not alike or _layout(a) != _layout(b):
        return _Unknown
    differ = {i for i, (m, n) in enumerate(zip(a.shape, b.shape)) if m != n}
    if any(kind.shape[i] < 2 for kind in (a, b) for i in differ):
        return _Unknown  # sizes of 0 and 1 are special to the compiler, each
    return replace(a, dynamic=tuple(sorted({*a.dynamic, *b.dynamic, *differ})))


def _resized(leaf: Any, sizes: Mapping[tuple[int, ...], tuple[int, ...]]) -> Any:
    if not isinstance(leaf, _TensorKind):
        return leaf
    for before, after in sizes.items():
        differ = [i for i, (a, b) in enumerate(zip(before, after)) if a != b]
        if len(before) == len(after) == len(leaf.shape) and all(leaf.shape[i] == before[i] for i in differ):
            shape = torch.Size(after[i] if i in differ else n for i, n in enumerate(leaf.shape))
            stride, count = [0] * len(shape), 1
            for i in reversed(_layout(leaf)):  # laid out as before, without gaps
                stride[i], count = count, count * shape[i]
            return replace(leaf, shape=shape, stride=tuple(stride))
    return leaf


def _merged_constants(a: Any, b: Any) -> Any:
    if type(a) is type(b) and a == b:
        return a
    types = {leaf.type if isinstance(leaf, _Number) else type(leaf) for leaf in (a, b)}
    examples = [leaf.example if isinstance(leaf, _Number) else leaf for leaf in (a, b)]
    if types in ({int}, {float}) and all(map(math.isfinite, examples)):
        return a if isinstance(a, _Number) else _Number(type(examples[1]), examples[1])
    return _Unknown


def _without_sizes(leaf: Any) -> Any:
    if isinstance(leaf, _TensorKind):
        return len(leaf.shape), leaf.dtype, leaf.device, leaf.requires_grad
    return leaf.type if isinstance(leaf, _Number) else type(leaf) if type(leaf) in _NUMBERS else leaf


def _layout(kind: _TensorKind) -> list[int]:
    """The dimensions in the order in which they lie in memory."""
    return sorted(range(len(kind.stride)), key=lambda i: (-kind.stride[i], i))


def _example(kind: Any, is_static: bool) -> Any:
    """Such a value. ``is_static``: the sizes of tensors are constant, unless they are dynamic here."""
    if isinstance(kind, _Number):
        return kind.example
    if not isinstance(kind, _TensorKind):
        return kind
    # Zeros: a valid index into any embedding, a finite value anywhere.
    made = torch.empty_strided(kind.shape, kind.stride, dtype=kind.dtype, device=kind.device)
    made.zero_().requires_grad_(kind.requires_grad)
    for dimension in kind.dynamic:
        _torch.mark_maybe_dynamic(made, dimension)
    for dimension in set(range(made.dim())) - set(kind.dynamic) if is_static else ():
        _torch.mark_static(made, dimension)
    return made
